"""Writes a tiny random Llama, or T5, as a Hugging Face directory, with the standard library only.

usage: tiny_model.py DIRECTORY        which must not exist
"""
import json
import pathlib
import random
import struct
import sys

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 259,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "bos_token_id": 256, "eos_token_id": 257,
    "torch_dtype": "float32",
}
T5_CONFIG = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 128,
    "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "vocab_size": 259,
    "layer_norm_epsilon": 1e-6, "dropout_rate": 0.0, "tie_word_embeddings": True, "pad_token_id": 256, "eos_token_id": 257,
    "decoder_start_token_id": 256, "torch_dtype": "float32",
}
CHAT_TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}" \
                "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def shapes(config):
    """{tensor name: shape} of a Llama without biases."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    queries = config["num_attention_heads"] * config["head_dim"]
    result = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,),
              "lm_head.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        result.update({
            prefix + "input_layernorm.weight": (hidden,), prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (queries, hidden), prefix + "self_attn.k_proj.weight": (keys, hidden),
            prefix + "self_attn.v_proj.weight": (keys, hidden), prefix + "self_attn.o_proj.weight": (hidden, queries),
            prefix + "mlp.gate_proj.weight": (inner, hidden), prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner)})
    return result


def t5_shapes(config):
    """{tensor name: shape} of a T5 with gated MLPs and one embedding."""
    hidden, inner, width = config["d_model"], config["d_ff"], config["num_heads"] * config["d_kv"]
    result = {"shared.weight": (config["vocab_size"], hidden)}

    def add_attention(prefix, kind, has_bias):
        result[prefix + "layer_norm.weight"] = (hidden,)
        result.update({f"{prefix}{kind}.{name}.weight": (width, hidden) for name in "qkv"})
        result[f"{prefix}{kind}.o.weight"] = (hidden, width)
        if has_bias:
            result[f"{prefix}{kind}.relative_attention_bias.weight"] = (config["relative_attention_num_buckets"],
                                                                        config["num_heads"])

    for stack, layers in (("encoder", config["num_layers"]), ("decoder", config["num_decoder_layers"])):
        for layer in range(layers):
            prefix = f"{stack}.block.{layer}.layer."
            add_attention(prefix + "0.", "SelfAttention", layer == 0)
            if stack == "decoder":
                add_attention(prefix + "1.", "EncDecAttention", False)
            mlp = prefix + ("2." if stack == "decoder" else "1.")
            result.update({mlp + "layer_norm.weight": (hidden,), mlp + "DenseReluDense.wi_0.weight": (inner, hidden),
                           mlp + "DenseReluDense.wi_1.weight": (inner, hidden), mlp + "DenseReluDense.wo.weight": (hidden, inner)})
        result[f"{stack}.final_layer_norm.weight"] = (hidden,)
    return result


def count_of(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def header_of(tensors, dtype="F32", size=4):
    """The safetensors header of {name: shape}, and how many bytes of data follow it."""
    entries, offset = {}, 0
    for name, shape in tensors.items():
        end = offset + count_of(shape) * size
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offset


def write_weights(path, tensors, seed=1):
    """A float32 safetensors file of normal numbers; norm weights are near 1."""
    draw = random.Random(seed)
    with open(path, "wb") as file:
        file.write(header_of(tensors)[0])
        for name, shape in tensors.items():
            centre, spread = (1.0, 0.1) if name.endswith("norm.weight") else (0.0, 0.15)
            values = [draw.gauss(centre, spread) for _ in range(count_of(shape))]
            file.write(struct.pack(f"<{len(values)}f", *values))


def byte_alphabet():
    """The 256 characters by which byte-level BPE writes bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def write_tokenizer(folder):
    """A byte-level BPE without merges: one token a byte, and three special tokens."""
    specials = ["<s>", "</s>", "<|assistant|>"]
    vocab = {character: byte for byte, character in enumerate(byte_alphabet())}
    vocab.update({token: 256 + index for index, token in enumerate(specials)})
    added = [{"id": 256 + index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for index, token in enumerate(specials)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}))


def write_model(folder, **changes):
    """The whole directory; `changes` go into config.json."""
    config = {**CONFIG, **changes}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model.safetensors", shapes(config))
    write_tokenizer(folder)
    return folder


def write_t5_model(folder):
    """An encoder-decoder of the same tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(T5_CONFIG))
    write_weights(folder / "model.safetensors", t5_shapes(T5_CONFIG))
    write_tokenizer(folder)
    return folder


def write_large_sparse_model(folder):
    """About 3 GB of zeros that take no room on disk: enough work to be interrupted in."""
    config = {**CONFIG, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16,
              "num_key_value_heads": 16, "head_dim": 128, "torch_dtype": "bfloat16"}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, size = header_of(shapes(config), "BF16", 2)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    write_tokenizer(folder)
    return folder


if __name__ == "__main__":
    write_model(pathlib.Path(sys.argv[1]))

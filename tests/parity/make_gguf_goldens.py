"""Writes tests/data/gguf: random blocks of every supported ggml type with the floats that the gguf package decodes,
and tiny GGUF models with what transformers makes of them.

Run from the repository root with gguf, numpy, torch, transformers and sentencepiece installed:
    python tests/parity/make_gguf_goldens.py
"""
import io
import json
import pathlib

import gguf
import numpy as np
import sentencepiece
import torch
from gguf import GGMLQuantizationType as T
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

OUT = pathlib.Path("tests/data/gguf")
BLOCK_TYPES = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL]
# Where the f16 scales of a block lie: random bytes there would be NaN now and then.
SCALES = {T.F16: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
          T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0]}


def random_blocks(random, kind):
    values, size = gguf.GGML_QUANT_SIZES[kind]
    count = max(1, 1024 // values)
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    if kind == T.F32:
        return random.standard_normal(count).astype(np.float32).view(np.uint8)
    if kind == T.BF16:
        return (random.standard_normal(count).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    for at in SCALES[kind]:
        scales = (random.standard_normal(count) * 10.0 ** random.integers(-7, 2, count)).astype(np.float16)
        blocks[:, at:at + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks.reshape(-1)


def write_blocks():
    """A GGUF file whose tensor NAME holds random blocks and NAME.floats what they decode to."""
    random = np.random.default_rng(5)
    writer = gguf.GGUFWriter(OUT / "blocks.gguf", "blocks")
    for kind in BLOCK_TYPES:
        blocks = random_blocks(random, kind)
        stored = blocks.view({T.F32: np.float32, T.F16: np.float16}.get(kind, np.uint8))
        decoded = gguf.quants.dequantize(stored, kind).astype(np.float32).reshape(-1)
        writer.add_tensor(kind.name, stored, raw_dtype=kind)
        writer.add_tensor(kind.name + ".floats", decoded)
    finish(writer)


def write_every_value():
    """Every type of metadata value, and two tensors, under another alignment."""
    writer = gguf.GGUFWriter(OUT / "values.gguf", "values")
    writer.add_custom_alignment(64)
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 4000000000)
    writer.add_int32("i32", -2000000000)
    writer.add_uint64("u64", 2**63 + 1)
    writer.add_int64("i64", -2**62)
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("text", "ünïcode ▁")
    writer.add_array("texts", ["a", "", "c"])
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_tensor("matrix", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("vector", np.arange(3, dtype=np.float16))
    finish(writer)


def interleave_halves(rows, heads):
    """The order that GGUF gives the q and k rows of llama models."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def add_model(writer, arch, hidden=32, heads=4, kv_heads=2, feed_forward=64, vocab=300, tied=False):
    """Metadata and random weights of a one-layer model; q and k in Q8_0 so that rows move as blocks."""
    random = np.random.default_rng(11)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // heads)
    kv = hidden // heads * kv_heads
    shapes = {"token_embd.weight": (vocab, hidden), "output_norm.weight": (hidden,), "blk.0.attn_norm.weight": (hidden,),
              "blk.0.ffn_norm.weight": (hidden,), "blk.0.attn_q.weight": (hidden, hidden), "blk.0.attn_k.weight": (kv, hidden),
              "blk.0.attn_v.weight": (kv, hidden), "blk.0.attn_output.weight": (hidden, hidden),
              "blk.0.ffn_gate.weight": (feed_forward, hidden), "blk.0.ffn_up.weight": (feed_forward, hidden),
              "blk.0.ffn_down.weight": (hidden, feed_forward)}
    if not tied:
        shapes["output.weight"] = (vocab, hidden)
    if arch == "qwen2":
        shapes.update({f"blk.0.attn_{name}.bias": (size,) for name, size in (("q", hidden), ("k", kv), ("v", kv))})
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        if arch == "llama" and ("attn_q." in name or "attn_k." in name):
            values = interleave_halves(values, heads if "attn_q." in name else kv_heads)
        kind = T.F32 if len(shape) == 1 else T.Q4_0 if "ffn" in name else T.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def byte_level_alphabet():
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + i) for i in range(len(others))]


def add_byte_level_tokenizer(writer, pre, vocab=300):
    tokens = ["<|end|>", "<|start|>", "<think>"] + byte_level_alphabet()
    merges = []
    for left, right in [("t", "h"), ("th", "e"), ("\u0120", "the"), ("i", "n"), ("e", "r"), ("a", "n"), ("o", "n"), ("1", "2"), ("'", "s")]:
        merges.append(f"{left} {right}")
        tokens.append(left + right)
    types = [3, 3, 4] + [1] * (len(tokens) - 3)
    while len(tokens) < vocab:
        tokens.append(f"[PAD{len(tokens)}]")
        types.append(5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def add_sentencepiece_tokenizer(writer, path, vocab):
    """A SentencePiece BPE model with Llama 2's settings, trained on the licence text. Returns its merges, best first."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(pathlib.Path("LICENSE").read_text().splitlines()), model_writer=model,
                                             vocab_size=vocab, model_type="bpe", byte_fallback=True, character_coverage=1.0,
                                             normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
                                             minloglevel=2, num_threads=1)
    path.write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokens = [pieces.id_to_piece(i) for i in range(vocab)]
    scores = [pieces.get_score(i) for i in range(vocab)]
    types = [2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1 for i in range(vocab)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [(-scores[i], i, -cut, token[:cut], token[cut:]) for i, token in enumerate(tokens) if types[i] == 1
              for cut in range(1, len(token)) if token[:cut] in ids and token[cut:] in ids]
    return [[left, right] for *_, left, right in sorted(merges)]


def write_models():
    writer = gguf.GGUFWriter(OUT / "tiny_llama.gguf", "llama")
    vocab = 600
    add_model(writer, "llama", vocab=vocab)
    merges = add_sentencepiece_tokenizer(writer, OUT / "tiny_llama.model", vocab)
    finish(writer)
    (OUT / "tiny_llama.merges.json").write_text(json.dumps(merges, ensure_ascii=False) + "\n")

    writer = gguf.GGUFWriter(OUT / "tiny_qwen2.gguf", "qwen2")
    add_model(writer, "qwen2", tied=True)
    add_byte_level_tokenizer(writer, "qwen2")
    finish(writer)

    for name in ("tiny_llama", "tiny_qwen2"):
        model = AutoModelForCausalLM.from_pretrained(OUT, gguf_file=f"{name}.gguf", dtype=torch.float32)
        weights = {key: value.to(torch.bfloat16).contiguous() for key, value in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            del weights["lm_head.weight"]
        save_file(weights, OUT / f"{name}.golden")


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    write_blocks()
    write_every_value()
    write_models()


if __name__ == "__main__":
    main()

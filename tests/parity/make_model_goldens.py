#!/usr/bin/env python3
"""Tiny random models with what transformers (fp32, CPU) and bitsandbytes make of them, for tests/data/models.

    python tests/parity/make_model_goldens.py tests/data/models [NAME...]

Each NAME/ holds config.json and model.safetensors (bf16, run in fp32), goldens.safetensors (logits, greedy ids, a
left-padded batch, and logits with weights quantized and dequantized by bitsandbytes) and expected.json (printed trees,
footprints, parameter counts, skipped modules). llama-nf4-dq/ and llama-int8/ are what save_pretrained writes.
"""
import inspect
import json
import pathlib
import shutil
import sys
import zlib

import bitsandbytes.functional as F
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.activations import ACT2FN
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

# transformers 5 asks for `type(module) is nn.Linear`, so that Falcon's subclass of it stays unquantized without a word;
# transformers 4 quantized it, and so does nibble.
transformers.integrations.bitsandbytes.type = lambda x: torch.nn.Linear if isinstance(x, torch.nn.Linear) else type(x)

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
# What the configuration classes call the sizes of BASE.
GPT2_NAMES = dict(hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head",
                  max_position_embeddings="n_positions")
NAMES = {"GPT2": GPT2_NAMES, "Bloom": dict(num_hidden_layers="n_layer", num_attention_heads="n_head"),
         "OPT": dict(intermediate_size="ffn_dim"), "GPTJ": GPT2_NAMES, "GPTBigCode": GPT2_NAMES,
         "GPTNeo": dict(num_hidden_layers="num_layers", num_attention_heads="num_heads"),
         "Mpt": dict(hidden_size="d_model", num_hidden_layers="n_layers", num_attention_heads="n_heads",
                     max_position_embeddings="max_seq_len")}
CLASSES = {"GPT2": "GPT2LMHeadModel"}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}
BASE = dict(vocab_size=160, hidden_size=64, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, pad_token_id=None, bos_token_id=1, eos_token_id=None,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0))


def rope(**parameters):
    return dict(rope_parameters=dict(rope_theta=10000.0, **parameters))


MODELS = {
    "llama": ("Llama", dict(tie_word_embeddings=True, pad_token_id=2)),
    "llama-bias": ("Llama", dict(attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5, num_key_value_heads=1)),
    "llama-odd": ("Llama", dict(hidden_size=40, head_dim=12, num_attention_heads=4, intermediate_size=52, vocab_size=157)),
    "llama-linear": ("Llama", rope(rope_type="linear", factor=2.0)),
    "llama-dynamic": ("Llama", dict(max_position_embeddings=32, **rope(rope_type="dynamic", factor=2.0))),
    "llama-llama3": ("Llama", rope(**LLAMA3)),
    "llama-yarn": ("Llama", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)),
    "mistral-window": ("Mistral", dict(sliding_window=8, head_dim=24)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2-window": ("Qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=32)),
    "gpt-neox": ("GPTNeoX", dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                      partial_rotary_factor=0.5))),
    "gpt-neox-serial": ("GPTNeoX", dict(use_parallel_residual=False, attention_bias=False, hidden_act="gelu_fast",
                                        tie_word_embeddings=True)),
    "gpt2": ("GPT2", {}),
    "gpt2-scaled": ("GPT2", dict(scale_attn_by_inverse_layer_idx=True, n_inner=88)),
    "bloom": ("Bloom", dict(n_head=4)),
    "bloom-odd": ("Bloom", dict(hidden_size=60, n_head=6, apply_residual_connection_post_layernorm=True)),
    "opt": ("OPT", {}),
    "opt-350m": ("OPT", dict(word_embed_proj_dim=32, do_layer_norm_before=False)),
    "opt-plain": ("OPT", dict(enable_bias=False, layer_norm_elementwise_affine=False)),
    "gemma": ("Gemma", dict(hidden_size=60, head_dim=24, pad_token_id=0, num_key_value_heads=1)),
    "gemma2": ("Gemma2", dict(head_dim=24, query_pre_attn_scalar=16, sliding_window=8, attn_logit_softcapping=1.5,
                              final_logit_softcapping=5.0, intermediate_size=52)),
    "gemma3": ("Gemma3", dict(head_dim=20, query_pre_attn_scalar=16, sliding_window=8, num_hidden_layers=3,
                              intermediate_size=44, layer_types=["sliding_attention", "full_attention",
                                                                 "sliding_attention"],
                              rope_parameters=dict(
                                  full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
                                  sliding_attention=dict(rope_type="default", rope_theta=10000.0)))),
    "phi3": ("Phi3", dict(sliding_window=8, num_key_value_heads=4, pad_token_id=0)),
    # Crosses from the short to the long factors while it generates.
    "phi3-longrope": ("Phi3", dict(original_max_position_embeddings=40, pad_token_id=0, rope_parameters=dict(
        rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75,
        short_factor=[1.0, 1.05, 1.1, 1.2, 1.4, 1.8], long_factor=[1.1, 1.5, 2.0, 3.0, 5.0, 8.0]))),
    "smollm3": ("SmolLM3", dict(no_rope_layers=[1, 0, 1], num_hidden_layers=3, intermediate_size=52)),
    "smollm3-window": ("SmolLM3", dict(no_rope_layer_interval=2, use_sliding_window=True, sliding_window=8,
                                       attention_bias=True, mlp_bias=True, tie_word_embeddings=False)),
    "olmo2": ("Olmo2", {}),
    "mistral": ("Mistral", dict(sliding_window=None, tie_word_embeddings=True)),
    "qwen3-bias": ("Qwen3", dict(head_dim=16, attention_bias=True, tie_word_embeddings=True, use_sliding_window=True,
                                 sliding_window=8, max_window_layers=1)),
    "mixtral": ("Mixtral", dict(hidden_size=48, intermediate_size=40, num_local_experts=4, num_experts_per_tok=2)),
    "gptj": ("GPTJ", dict(rotary_dim=8, n_inner=72)),
    "gpt-neo": ("GPTNeo", dict(attention_types=[[["global", "local"], 1]], window_size=9, max_position_embeddings=64)),
    "phi": ("Phi", dict(num_key_value_heads=4, **rope(rope_type="default", partial_rotary_factor=0.5))),
    "phi-normed": ("Phi", dict(qk_layernorm=True, pad_token_id=2,
                               **rope(rope_type="default", partial_rotary_factor=0.25))),
    "falcon-rw": ("Falcon", dict(hidden_size=48, num_attention_heads=6, ffn_hidden_size=72, alibi=True, bias=True,
                                 multi_query=False, parallel_attn=False)),
    "falcon-7b": ("Falcon", dict(ffn_hidden_size=96)),
    "falcon-40b": ("Falcon", dict(num_attention_heads=8, num_kv_heads=2, ffn_hidden_size=72,
                                  new_decoder_architecture=True)),
    "falcon-11b": ("Falcon", dict(num_kv_heads=2, ffn_hidden_size=72, new_decoder_architecture=True,
                                  num_ln_in_parallel_attn=1, tie_word_embeddings=False)),
    "mpt": ("Mpt", dict(d_model=48)),
    "mpt-odd": ("Mpt", dict(d_model=48, n_heads=6, attn_config=dict(softmax_scale=0.5), tie_word_embeddings=False)),
    "stablelm": ("StableLm", dict(num_key_value_heads=4, use_qkv_bias=True,
                                  **rope(rope_type="default", partial_rotary_factor=0.25))),
    "stablelm-12b": ("StableLm", dict(qk_layernorm=True, use_parallel_residual=True,
                                      **rope(rope_type="default", partial_rotary_factor=0.5))),
    "starcoder2": ("Starcoder2", dict(sliding_window=8)),
    "starcoder2-plain": ("Starcoder2", dict(use_bias=False, head_dim=24, tie_word_embeddings=False)),
    "gpt-bigcode": ("GPTBigCode", dict(n_inner=72, n_positions=64)),
    "gpt-bigcode-multi-head": ("GPTBigCode", dict(multi_query=False, n_inner=72, n_positions=64,
                                                     scale_attn_weights=False)),
}


class ExpertLayers(torch.nn.Module):
    """An expert of Mixtral as three layers."""

    def __init__(self, config):
        super().__init__()
        self.w1 = torch.nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = torch.nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.w3 = torch.nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x):
        return self.w2(self.act_fn(self.w1(x)) * self.w3(x))


class ExpertsBlock(torch.nn.Module):
    """The router and the experts of a layer of Mixtral, none of them fused."""

    def __init__(self, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = torch.nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.experts = torch.nn.ModuleList([ExpertLayers(config) for _ in range(config.num_local_experts)])

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(rows).float().softmax(-1).topk(self.top_k)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(rows)
        for index, expert in enumerate(self.experts):
            token, place = (chosen == index).nonzero(as_tuple=True)
            if len(token):
                y.index_add_(0, token, expert(rows[token]) * weights[token, place, None].to(rows.dtype))
        return y.view_as(x)


class LayerWithExperts(mixtral.MixtralDecoderLayer):
    """A layer of Mixtral with the modules that its files and transformers 4 have, whose experts bitsandbytes quantizes.

    transformers 5 fuses the experts of a layer into two parameters, which bitsandbytes leaves alone.
    """
    mlp = property(lambda self: self.block_sparse_moe)

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        modules = dict(self._modules)
        self._modules.clear()
        for name, module in modules.items():
            self.add_module(*(("block_sparse_moe", ExpertsBlock(config)) if name == "mlp" else (name, module)))


for unfused, printed in {ExpertLayers: "MixtralBlockSparseTop2MLP", ExpertsBlock: "MixtralSparseMoeBlock",
                         LayerWithExperts: "MixtralDecoderLayer"}.items():
    unfused.__name__ = printed
FUSED = mixtral.MixtralDecoderLayer, get_checkpoint_conversion_mapping("mixtral")


def check_fused(path, expected_logits, prompt):
    """The stock model, with its fused experts, must give the same logits."""
    unfused = mixtral.MixtralDecoderLayer
    mixtral.MixtralDecoderLayer = FUSED[0]
    register_checkpoint_conversion_mapping("mixtral", FUSED[1], overwrite=True)
    torch.testing.assert_close(logits(load(path, dtype=torch.float32), prompt), expected_logits, rtol=1e-4, atol=1e-5)
    mixtral.MixtralDecoderLayer = unfused
    register_checkpoint_conversion_mapping("mixtral", [], overwrite=True)


FP4_BOUNDARIES = torch.tensor([0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333])
SMALL = {"llama", "llama-odd", "qwen2"} | set(list(MODELS)[11:])  # of these, logits with quantized weights as well


def build(family, overrides, seed):
    torch.manual_seed(seed)
    names = NAMES.get(family, {})
    config_class = getattr(transformers, CONFIGS.get(family, family + "Config"))
    base = {names.get(key, key): value for key, value in BASE.items()}
    known = set(inspect.signature(config_class.__init__).parameters) | {"bos_token_id", "eos_token_id", "pad_token_id"}
    config = config_class(**{**{key: value for key, value in base.items() if key in known}, **overrides})
    model = getattr(transformers, CLASSES.get(family, family + "ForCausalLM"))(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and ("norm" in name or "ln_" in name):
                parameter.copy_((0 if family.startswith("Gemma") else 1) + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_((0.1 if name.endswith("bias") else 0.15) * torch.randn_like(parameter))
    return model


def load(path, **options):
    return AutoModelForCausalLM.from_pretrained(path, **options).eval()


def skipped_modules(model):
    """The default list. transformers asks for it before it ties weights, when the head's is the last parameter."""
    with torch.device("meta"):
        untied = type(model)(model.config)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.clone())
    return sorted(get_keys_to_not_convert(untied))


def linears(model):
    """Every linear layer that is quantized by default. GPT-2's Conv1D holds its weight as (in, out)."""
    skip = skipped_modules(model)
    return [(n, m) for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and n not in skip]


def through(transform, module):
    """The module's weight after `transform` of it as (out, in)."""
    if isinstance(module, Conv1D):
        return transform(module.weight.data.T.contiguous()).float().T
    return transform(module.weight.data).float()


def replaced(path, transform):
    """The model in fp32 with every linear weight but the head's passed through `transform`."""
    model = load(path, dtype=torch.float32)
    with torch.no_grad():
        for _, module in linears(model):
            module.weight.copy_(through(transform, module))
    return model


def four_bit(quant_type, nested):
    """Codes by CUDA's rules (bitsandbytes' CPU build rounds ties otherwise and decodes some shapes wrongly)."""
    def transform(weight):
        code = F.get_4bit_type(quant_type, device="cpu")
        values = code.sort().values
        flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
        absmax = flat.abs().amax(1)
        y = flat * (1 / absmax)[:, None]
        if quant_type == "fp4":  # sign and magnitude: a tie goes to the smaller magnitude
            magnitudes = values[values >= 0].unique()
            decoded = magnitudes[torch.bucketize(y.abs(), FP4_BOUNDARIES)] * y.sign()
        else:
            decoded = values[torch.bucketize(y, (values[1:] + values[:-1]) / 2)]  # a tie goes to the lower value
        if nested:
            absmax = nest(absmax)
        return (decoded * absmax[:, None]).flatten()[:weight.numel()].view_as(weight)
    return transform


def nest(absmax):
    offset = absmax.double().mean().float()
    centred = absmax - offset
    blocks = torch.nn.functional.pad(centred, (0, -len(centred) % 256)).view(-1, 256)
    scale = blocks.abs().amax(1)
    code = F.create_dynamic_map(signed=True)
    nearest = ((blocks / scale[:, None])[..., None] - code).abs().argmin(-1)
    return ((code[nearest] * scale[:, None]).flatten()[:len(absmax)] + offset)


def stored_four_bit(path):
    """The weights of a pre-quantized checkpoint, each decoded as one row: bitsandbytes' CPU build is right there."""
    model = load(path)
    result = {}
    for name, module in linears(model):
        state = module.weight.quant_state
        shape, state.shape, state.dtype = state.shape, torch.Size([state.shape.numel()]), torch.float32
        result[name] = F.dequantize_4bit(module.weight.data, state).view(shape)
    return result


def int8(weight):
    values, absmax, _ = F.int8_vectorwise_quant(weight.half())
    return F.int8_vectorwise_dequant(values, absmax)


def with_int8_inputs(model, weights, threshold=6.0):
    """LLM.int8() simulated in an fp32 model: inputs rounded to fp16, quantized by rows, exact products."""
    for name, module in linears(model):
        values, scale, _ = F.int8_vectorwise_quant(weights[name].half())

        def forward(x, values=values.double(), scale=scale.double(), bias=module.bias):
            rows = x.reshape(-1, x.shape[-1]).half()
            q, absmax, outliers = F.int8_vectorwise_quant(rows.clone(), threshold)
            q = q.double()
            y = (q @ values.T) * absmax.double()[:, None] * scale / 127**2
            if outliers is not None and len(outliers):
                y += rows[:, outliers].double() @ (values[:, outliers] * scale[:, None] / 127).half().double().T
            y = y.float() if bias is None else y.float() + bias
            return y.view(*x.shape[:-1], -1)

        module.forward = forward
    return model


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().contiguous()


def greedy(model, ids, count, mask=None):
    ids = torch.tensor(ids)
    with torch.no_grad():
        return model.generate(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, max_new_tokens=count,
                              do_sample=False, pad_token_id=0, eos_token_id=None).int()


def goldens(name, path, vocab):
    model = load(path, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    prompt = torch.randint(3, vocab, (48,), generator=generator).tolist()
    tensors = {"prompt": torch.tensor(prompt, dtype=torch.int32), "logits": logits(model, prompt)}
    # A dynamic model's cached keys keep the angles of their time, so generation starts inside the trained length.
    start = prompt[:24]
    tensors["greedy"] = greedy(model, [start], 32)[0]
    lengths = [5, 17, 24]
    padded = torch.tensor([[0] * (24 - n) + prompt[:n] for n in lengths])
    mask = torch.tensor([[0] * (24 - n) + [1] * n for n in lengths])
    tensors["batch_greedy"] = greedy(model, padded.tolist(), 16, mask)[:, 24:].contiguous()
    tensors["batch_lengths"] = torch.tensor(lengths, dtype=torch.int32)
    if name in SMALL:
        for key, transform in {"nf4": four_bit("nf4", False), "fp4": four_bit("fp4", False),
                               "nf4_dq": four_bit("nf4", True), "int8": int8}.items():
            quantized = replaced(path, transform)
            tensors["logits_" + key] = logits(quantized, start)
            tensors["greedy_" + key] = greedy(quantized, [start], 32)[0]
        model = load(path, dtype=torch.float32)
        weights = {n: m.weight.data.T.contiguous() if isinstance(m, Conv1D) else m.weight.data for n, m in linears(model)}
        tensors["logits_llm_int8"] = logits(with_int8_inputs(model, weights), start)
    save_file(tensors, path / "goldens.safetensors")


def expected(path):
    result = {}
    for key, config in {"float": None, "4bit": BitsAndBytesConfig(load_in_4bit=True),
                        "8bit": BitsAndBytesConfig(load_in_8bit=True),
                        "4bit_skip": BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=[
                            "lm_head", "model.layers.1", "up_proj", r"model\.layers\..\.self_attn\.k_proj"])}.items():
        model = load(path, quantization_config=config)
        result[key] = {"tree": str(model), "memory_footprint_bytes": model.get_memory_footprint(),
                       "num_parameters": model.num_parameters()}
        if key == "4bit":
            result["skipped_modules"] = sorted(model.hf_quantizer.modules_to_not_convert)
    (path / "expected.json").write_text(json.dumps(result, indent=1) + "\n")


def main(out, only):
    mixtral.MixtralDecoderLayer = LayerWithExperts
    register_checkpoint_conversion_mapping("mixtral", [], overwrite=True)
    for index, (name, (family, overrides)) in enumerate(MODELS.items()):
        if only and name not in only:
            continue
        path = out / name
        shutil.rmtree(path, ignore_errors=True)
        # Seeds of later models come from their names, so that an entry in between changes no other model.
        model = build(family, overrides, index if index < 20 else zlib.crc32(name.encode())).to(torch.bfloat16)
        model.save_pretrained(path)
        (path / "generation_config.json").unlink()
        goldens(name, path, model.config.vocab_size)
        if family == "Mixtral":
            stored = load_file(path / "goldens.safetensors")
            check_fused(path, stored["logits"], stored["prompt"].tolist())
        expected(path)
    for name, config in {"llama-nf4-dq": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                                            bnb_4bit_use_double_quant=True),
                         "llama-int8": BitsAndBytesConfig(load_in_8bit=True)}.items():
        if only and name not in only:
            continue
        shutil.rmtree(out / name, ignore_errors=True)
        load(out / "llama", quantization_config=config).save_pretrained(out / name)
        (out / name / "generation_config.json").unlink()
        model = load(out / "llama", dtype=torch.float32)
        start = torch.randint(3, model.config.vocab_size, (48,), generator=torch.Generator().manual_seed(7)).tolist()[:24]
        if name == "llama-int8":
            with_int8_inputs(model, {n: m.weight.data for n, m in linears(model)})
        else:
            with torch.no_grad():
                for module_name, weight in stored_four_bit(out / name).items():
                    model.get_submodule(module_name).weight.copy_(weight)
        save_file({"logits": logits(model, start)}, out / name / "goldens.safetensors")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])

#!/usr/bin/env python3
"""Tiny random encoder-decoders with what transformers (fp32, CPU) makes of them, for tests/data/models.

    python tests/parity/make_seq2seq_goldens.py tests/data/models [NAME...]

Each NAME/ holds config.json and model.safetensors (bf16, run in fp32), seq2seq.safetensors (a source and the encoder's
output, logits of a forced target, greedy and beam ids, a padded batch, logits and greedy ids with quantized weights) and
expected.json (printed trees, footprints and parameter counts, and for each dtype what a load in it weighs).
relative_buckets.json has buckets of distances.
"""
import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig
from transformers.models.t5.modeling_t5 import T5Attention

from make_model_goldens import four_bit, int8, with_int8_inputs

BASE = dict(vocab_size=160, d_model=48, d_kv=12, d_ff=72, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1,
            decoder_start_token_id=0)
MODELS = {
    "t5": ("T5", dict(num_layers=2, num_decoder_layers=1)),
    # Inner width other than d_model, few buckets, a head of its own. (transformers cannot generate with more layers in the
    # decoder than in the encoder.)
    "t5-gated": ("T5", dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, d_kv=8, d_ff=56,
                            relative_attention_num_buckets=8, relative_attention_max_distance=20)),
}
LEVELS = {"float": None, "4bit": BitsAndBytesConfig(load_in_4bit=True), "8bit": BitsAndBytesConfig(load_in_8bit=True),
          "4bit_skip": BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=[
              "lm_head", "model.layers.1", "up_proj", r"model\.layers\..\.self_attn\.k_proj"])}
BUCKETS = [(32, 128), (8, 20), (16, 33), (64, 1000)]


def build(family, overrides, seed):
    torch.manual_seed(seed)
    config = getattr(transformers, family + "Config")(**{**BASE, **overrides})
    model = getattr(transformers, family + "ForConditionalGeneration")(config).eval()
    if overrides.get("tie_word_embeddings") is False:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                spread = 1.0 if "bias" in name else 0.2 if "shared" in name else 0.25  # a large tied embedding echoes
                parameter.copy_(spread * torch.randn_like(parameter))
    return model


def load(path, **options):
    return AutoModelForSeq2SeqLM.from_pretrained(path, **options).eval()


def linears(model):
    """Every linear layer that is quantized by default: neither the head nor wo."""
    return [(n, m) for n, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and n != "lm_head" and not n.endswith(".wo")]


def generate(model, source, count, mask=None, **options):
    ids = torch.tensor(source)
    with torch.no_grad():
        return model.generate(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, max_new_tokens=count,
                              do_sample=False, **{"eos_token_id": None, **options}).int()


def logits(model, source, target):
    with torch.no_grad():
        return model(torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits[0].float().contiguous()


def goldens(path):
    model = load(path, dtype=torch.float32)
    generator = torch.Generator().manual_seed(11)
    source, target = (torch.randint(3, 160, (n,), generator=generator).tolist() for n in (48, 40))
    target[0] = model.config.decoder_start_token_id
    with torch.no_grad():
        encoded = model.encoder(torch.tensor([source])).last_hidden_state[0].contiguous()
    tensors = {"source": torch.tensor(source, dtype=torch.int32), "target": torch.tensor(target, dtype=torch.int32),
               "encoded": encoded, "logits": logits(model, source, target), "greedy": generate(model, [source], 32)[0],
               "beams": generate(model, [source], 16, num_beams=3, eos_token_id=1)[0]}
    lengths = [5, 17, 48]
    padded = [source[:n] + [0] * (48 - n) for n in lengths]
    mask = torch.tensor([[1] * n + [0] * (48 - n) for n in lengths])
    tensors["batch_greedy"] = generate(model, padded, 16, mask).contiguous()
    tensors["batch_lengths"] = torch.tensor(lengths, dtype=torch.int32)
    for key, transform in {"nf4": four_bit("nf4", False), "fp4": four_bit("fp4", False),
                           "nf4_dq": four_bit("nf4", True), "int8": int8}.items():
        quantized = load(path, dtype=torch.float32)
        with torch.no_grad():
            for _, module in linears(quantized):
                module.weight.copy_(transform(module.weight.data).float())
        tensors["logits_" + key] = logits(quantized, source, target)
        tensors["greedy_" + key] = generate(quantized, [source], 32)[0]
    # with_int8_inputs() asks make_model_goldens for the layers, and that list is of decoders.
    import make_model_goldens
    make_model_goldens.linears = linears
    tensors["logits_llm_int8"] = logits(with_int8_inputs(model, {n: m.weight.data for n, m in linears(model)}), source, target)
    save_file(tensors, path / "seq2seq.safetensors")


def expected(path):
    result = {}
    for key, config in LEVELS.items():
        model = load(path, quantization_config=config)
        result[key] = {"tree": str(model), "memory_footprint_bytes": model.get_memory_footprint(),
                       "num_parameters": model.num_parameters()}
        if key == "4bit":
            result["skipped_modules"] = sorted(model.hf_quantizer.modules_to_not_convert)
    result["dtypes"] = {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        result["dtypes"][str(dtype).removeprefix("torch.")] = {
            key: load(path, dtype=dtype, quantization_config=LEVELS[key]).get_memory_footprint()
            for key in ("float", "4bit", "8bit")}
    (path / "expected.json").write_text(json.dumps(result, indent=1) + "\n")


def buckets(out):
    distances = torch.arange(-300, 301)
    cases = [{"buckets": count, "max_distance": most, "is_bidirectional": both,
              "expected": T5Attention._relative_position_bucket(distances, both, count, most).tolist()}
             for count, most in BUCKETS for both in (True, False)]
    (out / "relative_buckets.json").write_text(json.dumps({"first_distance": -300, "cases": cases}) + "\n")


def main(out, only):
    for index, (name, (family, overrides)) in enumerate(MODELS.items()):
        if only and name not in only:
            continue
        path = out / name
        shutil.rmtree(path, ignore_errors=True)
        build(family, overrides, seed=100 + 3 * index).to(torch.bfloat16).save_pretrained(path)
        (path / "generation_config.json").unlink()
        goldens(path)
        expected(path)
    if not only:
        buckets(out)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])

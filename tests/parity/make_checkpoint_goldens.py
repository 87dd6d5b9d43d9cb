"""Writes tests/data/checkpoint: tiny models saved by transformers + bitsandbytes, and plain safetensors files.

Run from the repository root with torch, transformers, bitsandbytes, accelerate and safetensors installed:
    python tests/parity/make_checkpoint_goldens.py
"""
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

OUT = pathlib.Path("tests/data/checkpoint")
CONFIG = dict(vocab_size=40, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)


def plain_model(**overrides):
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, **overrides}, dtype="bfloat16"))
    return model.to(torch.bfloat16)


def save_quantized(name, config, **overrides):
    source = OUT / "source"
    plain_model(**overrides).save_pretrained(source)
    model = LlamaForCausalLM.from_pretrained(source, quantization_config=config, device_map="cpu", dtype=torch.bfloat16)
    shutil.rmtree(source)
    model.save_pretrained(OUT / name)
    if not config.load_in_4bit:
        return
    # What the library itself decodes, to check the reading of offsets and statistics against.
    import bitsandbytes.functional as F

    weight = model.model.layers[0].mlp.down_proj.weight
    # Rows here are whole blocks: its CPU kernel (0.50.2) decodes blocks that cross rows with the wrong absmax.
    decoded = F.dequantize_4bit(weight.data, weight.quant_state).float().contiguous()
    save_file({"down_proj": decoded}, OUT / name / "decoded.golden")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    save_quantized("nf4_nested", BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                                    bnb_4bit_compute_dtype=torch.bfloat16),
                   intermediate_size=128, num_hidden_layers=2)
    save_quantized("fp4_bf16_storage", BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4",
                                                          bnb_4bit_quant_storage=torch.bfloat16),
                   intermediate_size=128, num_hidden_layers=1)
    save_quantized("int8", BitsAndBytesConfig(load_in_8bit=True), intermediate_size=96, num_hidden_layers=1)
    plain_model(intermediate_size=32, num_hidden_layers=1).save_pretrained(OUT / "sharded", max_shard_size="10KB")
    for leftover in OUT.glob("*/generation_config.json"):
        leftover.unlink()

    # All types, odd sizes: the library's own layout, byte by byte.
    tensors = {
        "z_f64": torch.arange(3, dtype=torch.float64),
        "b_f32": torch.arange(5, dtype=torch.float32) / 3,
        "a_bf16": torch.arange(7, dtype=torch.float32).to(torch.bfloat16).reshape(7, 1),
        "c_f16": torch.arange(6, dtype=torch.float16).reshape(2, 3),
        "i64": torch.tensor(-5, dtype=torch.int64),
        "i32": torch.arange(2, dtype=torch.int32),
        "i16": torch.arange(3, dtype=torch.int16),
        "i8": torch.arange(3, dtype=torch.int8),
        "u8": torch.arange(81, dtype=torch.uint8),
        "flag": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        'quote"and\\ünïcode': torch.ones(1),
    }
    save_file(tensors, OUT / "types.safetensors", metadata={"format": "pt"})
    save_file({"f8": torch.zeros(4, dtype=torch.float8_e4m3fn), "f32": torch.ones(2)}, OUT / "float8.safetensors")

    values = [0.043699998408555984, 0.0, -0.0, 1.0, 0.1, 1e-5, 0.0001, 0.00012345, 123456789.0, 1e16, 3.4e38, 1e-45, 1e15, -2.5e-7]
    floats = torch.tensor(values, dtype=torch.float32).tolist()
    (OUT / "python_floats.json").write_text("\n".join(json.dumps(v) for v in floats) + "\n")


if __name__ == "__main__":
    main()

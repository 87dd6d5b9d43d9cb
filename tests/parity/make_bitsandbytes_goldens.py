"""Runs bitsandbytes on the CPU and keeps what it computes: make_bitsandbytes_goldens.py TARGET_FILE.

Made with bitsandbytes 0.50.2 and torch 2.15 on a CPU with AVX-512. The tests read the file to show where we agree with this
path and where we don't: our values are those of the library's CUDA path (docs/formats/).
"""
import sys

import bitsandbytes
import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def edges(quant_type):
    """Every boundary between two values, and its two neighbours, in a block whose absmax is 1."""
    values = torch.sort(F.get_4bit_type(quant_type, device="cpu")).values
    middle = (values[1:] + values[:-1]) / 2
    row = torch.cat([torch.tensor([1.0]), middle, torch.nextafter(middle, torch.tensor(2.0)),
                     torch.nextafter(middle, torch.tensor(-2.0)), torch.tensor([0.0, -0.0, 1e-3, -1e-3])])
    return torch.cat([row, torch.zeros(64 - len(row))]).view(1, 64)


def inputs_4bit():
    """Odd counts, tails, rows that blocks cross (K % 64 in 1..63), special values."""
    shapes = {"odd1x7": (1, 7), "odd5x129": (5, 129), "cross3x50": (3, 50), "cross8x80": (8, 80), "cross6x96": (6, 96),
              "cross4x48": (4, 48), "whole4x64": (4, 64)}
    for name, shape in shapes.items():
        yield name, torch.randn(shape)
    yield "zeros2x64", torch.cat([torch.zeros(1, 64), torch.randn(1, 64)])
    yield "zerotail1x80", torch.cat([torch.randn(1, 64), torch.zeros(1, 16)], dim=1)
    for name, value in (("nan2x64", float("nan")), ("inf2x64", float("inf"))):
        x = torch.randn(2, 64)
        x[0, 5] = value
        yield name, x
    for quant_type in ("nf4", "fp4"):
        yield quant_type + "edges1x64", edges(quant_type)


def quantize_4bit(kept):
    for name, x in inputs_4bit():
        for type_name, dtype in TYPES.items():
            if "edges" in name and type_name != "f32":
                continue
            kept[f"in.{name}.{type_name}"] = x.to(dtype)
            for quant_type in ("nf4", "fp4"):
                for nested in (False, True) if name.startswith(("odd", "cross")) else (False,):
                    case = f"{name}.{type_name}.{quant_type}.bs64" + (".dq" if nested else "")
                    packed, state = F.quantize_4bit(x.to(dtype), blocksize=64, quant_type=quant_type, compress_statistics=nested)
                    kept[case + ".packed"] = packed
                    for key, value in state.as_dict(packed=True).items():
                        if key not in ("quant_map", "nested_quant_map"):
                            kept[f"{case}.{key}"] = value
                    kept[case + ".dequantized"] = F.dequantize_4bit(packed, state)


def quantize_8bit(kept):
    signed, unsigned = F.create_dynamic_map(True), F.create_dynamic_map(False)
    inputs = {"normal": (torch.randn(1001), signed), "square": (torch.randn(1001) ** 2, unsigned),
              "zeroamong": (torch.tensor([1.0, 0.0, -0.0, 1e-5, -1e-5, 5e-7, 3e-6, -0.5]), signed),
              "zeros": (torch.zeros(70), signed)}
    for name, (x, code) in inputs.items():
        codes, state = F.quantize_blockwise(x, code=code, blocksize=256)
        kept[f"8bit.{name}.in"] = x
        kept[f"8bit.{name}.codes"] = codes
        kept[f"8bit.{name}.absmax"] = state.absmax
        kept[f"8bit.{name}.dequantized"] = F.dequantize_blockwise(codes, state)


def llm_int8(kept):
    x = torch.randn(5, 100)
    x[:, 7] *= 30
    w = torch.randn(12, 100) * 0.1
    codes, absmax, _ = F.int8_vectorwise_quant(w.half())
    kept["int8.w"], kept["int8.CB"], kept["int8.SCB"] = w.half(), codes, absmax
    a, a_absmax, columns = F.int8_vectorwise_quant(x.half(), threshold=6.0)
    kept["int8.x"], kept["int8.CA"], kept["int8.SCA"], kept["int8.outlier_columns"] = x.half(), a, a_absmax, columns
    product = F.int8_linear_matmul(a, codes)
    kept["int8.product"] = product
    kept["int8.dequantized_product"] = torch.ops.bitsandbytes.int8_mm_dequant(
        product, a_absmax, absmax, dtype=torch.float32)


def main(path):
    torch.manual_seed(7)
    kept = {}
    quantize_4bit(kept)
    quantize_8bit(kept)
    llm_int8(kept)
    save_file({name: tensor.contiguous().clone() for name, tensor in kept.items()}, path,
              metadata={"library": "bitsandbytes " + bitsandbytes.__version__, "torch": torch.__version__, "device": "CPU"})


if __name__ == "__main__":
    main(sys.argv[1])

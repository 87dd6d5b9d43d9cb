"""Trims results of bitsandbytes' CUDA path to what the parity tests read: trim_cuda_goldens.py SOURCE_DIR TARGET_DIR.

SOURCE_DIR holds the safetensors files that tests/data/bitsandbytes_cuda/README.md describes. Values are copied, never
changed; what is left out is the same bytes under another name (checked), or more of the same.
"""
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SHAPES_OF_MATMUL = ("96x160.", "80x96.")


def read(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def same_bytes(a, b):
    return a.dtype == b.dtype and torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def trim_quantize_4bit(tensors):
    kept = {}
    for name, tensor in tensors.items():
        case, _, field = name.rpartition(".")
        if field in ("quant_map", "nested_quant_map"):
            quant_type = "nf4" if ".nf4." in name else "fp4"
            shared = f"quant_map.{quant_type}" if field == "quant_map" else "nested_quant_map"
            assert shared not in kept or same_bytes(kept[shared], tensor), name
            kept[shared] = tensor
        elif field == "packed" and case.endswith(".dq"):
            assert same_bytes(tensors[case[: -len(".dq")] + ".packed"], tensor), name  # codes ignore double quantization
        elif field == "dequantized" and name.startswith("randn96x160") and not (".nf4.bs64." in name or "bf16.fp4.bs64." in name):
            continue
        else:
            kept[name] = tensor
    return kept


def trim_quantize_blockwise(tensors):
    kept = {}
    for name, tensor in tensors.items():
        case, _, field = name.rpartition(".")
        if field == "in":
            shared = "in." + case.rpartition(".bs")[0]
            assert shared not in kept or same_bytes(kept[shared], tensor), name
            kept[shared] = tensor
        elif field != "dequantized" or case.endswith(".bs256"):
            kept[name] = tensor
    return kept


def trim_matmul_4bit(tensors):
    return {name: tensor for name, tensor in tensors.items() if name.removeprefix("w.").startswith(SHAPES_OF_MATMUL)}


def trim_optimizers(tensors):
    """Parameters and states after five steps, of the first 12 blocks where elements do not depend on each other."""
    kept = {}
    for name, tensor in tensors.items():
        family, field = name.partition(".")[0], name.rpartition(".")[2]
        if family in ("p0", "g0", "g1", "g2", "g3", "g4") or family in ("lamb", "lars"):
            kept[name] = tensor
        elif field != "p0":
            kept[name] = tensor[..., : 12 if field.startswith("absmax") else 12 * 256].contiguous()
    return {name: tensor for name, tensor in kept.items() if name.count(".") == 1 or not name.endswith(".p0")}


def main(source, target):
    target.mkdir(parents=True, exist_ok=True)
    rules = {"quantize_4bit": trim_quantize_4bit, "quantize_blockwise": trim_quantize_blockwise,
             "matmul_4bit": trim_matmul_4bit, "llm_int8": dict, "optimizers": trim_optimizers}
    for name, rule in rules.items():
        tensors, metadata = read(source / f"{name}.safetensors")
        origin = {key: metadata[key] for key in ("library", "torch", "device")}
        origin |= {key: metadata[key] for key in ("settings",) if key in metadata}
        path = target / f"{name}.safetensors"
        save_file(rule(tensors), path, metadata=origin)
        assert path.stat().st_size <= 1 << 20, f"{path}: {path.stat().st_size} bytes"
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

#!/usr/bin/env python3
"""The weights that PEFT's merge leaves in quantized models, for tests/data/merged.

    python tests/parity/make_merge_goldens.py tests/data/models tests/data/training/llama tests/data/merged
"""
import pathlib
import sys

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

MODULE = "model.layers.1.self_attn.{}"  # its rows are whole blocks: bitsandbytes' CPU kernel decodes no others rightly


def main(models, adapter, out):
    for name in ("llama-nf4-dq", "llama-int8"):
        base = AutoModelForCausalLM.from_pretrained(pathlib.Path(models) / name, device_map="cpu")
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
        tensors = {}
        for projection in ("q_proj", "v_proj"):
            path = MODULE.format(projection)
            weight = merged.get_submodule(path).weight
            tensors[path + ".weight"] = weight.data.clone().reshape(-1, 1) if weight.dtype == torch.uint8 else weight.data.clone()
            if weight.dtype == torch.int8:
                tensors[path + ".SCB"] = (weight.SCB if weight.SCB is not None else merged.get_submodule(path).state.SCB).clone()
        save_file(tensors, pathlib.Path(out) / f"{name}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])

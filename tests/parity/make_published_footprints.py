#!/usr/bin/env python3
"""What transformers' get_memory_footprint says of published models, from their configurations alone.

    python tests/parity/make_published_footprints.py tests/data/published

Each FILE.json holds the keys of a published config.json that decide shapes; the tool adds "footprint": bytes in fp16, with
LLM.int8() and in 4 bits, everything else in fp16, as AutoModel...from_pretrained(quantization_config=...) makes them. No
weights are needed: models are built on the meta device and the layers that bitsandbytes would replace are counted as
stored (8-bit: one byte a weight; 4-bit: half a byte).
"""
import json
import pathlib
import sys

import torch
import transformers
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

RENAMED = {"MPTForCausalLM": "MptForCausalLM"}  # published before transformers had the model


def footprints(config):
    name = config["architectures"][0]
    architecture = getattr(transformers, RENAMED.get(name, name))
    parsed = architecture.config_class.from_dict(config)
    with torch.device("meta"):
        model = architecture(parsed).half()
    skipped = get_keys_to_not_convert(model) + list(model._keep_in_fp32_modules or [])
    model.tie_weights()
    fp32 = [key for key in model._keep_in_fp32_modules or []]
    replaced = {f"{name}.weight" for name, module in model.named_modules()
                if isinstance(module, (torch.nn.Linear, Conv1D)) and should_convert_module(name, skipped)}
    # from_pretrained makes positions and frequencies in fp32, and Gemma's scale in the model's dtype.
    buffers = sum(b.numel() * (b.element_size() if name.endswith("embed_scale") or not b.is_floating_point() else 4) for name, b in model.named_buffers())
    result = {}
    for key, bits in {"fp16": 16, "8bit": 8, "4bit": 4}.items():
        total = buffers
        for name, parameter in model.named_parameters():
            if name in replaced and bits < 16:
                total += (parameter.numel() * bits + 7) // 8
            else:
                total += parameter.numel() * (4 if any(key in name.split(".") for key in fp32) else 2)
        result[key] = total
    result["num_parameters"] = model.num_parameters()
    return result


def main(folder):
    for path in sorted(folder.glob("*.json")):
        config = json.loads(path.read_text())
        config.pop("footprint", None)
        config["footprint"] = footprints(config)
        path.write_text(json.dumps(config, indent=1) + "\n")
        print(path.name, config["footprint"])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

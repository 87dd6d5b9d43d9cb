#!/usr/bin/env python3
"""Adapters of the tiny models, with the loss and gradients that torch + PEFT give, for tests/data/training.

    python tests/parity/make_training_goldens.py tests/data/models tests/data/training

Each NAME/ is an adapter that PEFT saved (A and B random), with goldens.safetensors: two sequences whose first targets are
left out, the summed loss, the gradients of every lora_A and lora_B, and logits with the adapter applied.
"""
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

CASES = {
    "llama": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "llama-odd": dict(r=3, lora_alpha=16, target_modules="all-linear", use_rslora=True),
    "llama-bias": dict(r=4, lora_alpha=4, target_modules=r".*layers\.1\.(mlp|self_attn)\..*_proj",
                       rank_pattern={"down_proj": 2, r"self_attn\.k_proj": 6}, alpha_pattern={"down_proj": 3}),
    "qwen3": dict(r=4, lora_alpha=8, target_modules=["o_proj", "gate_proj"], layers_to_transform=[1]),
    "mistral-window": dict(r=2, lora_alpha=8, target_modules="all-linear", exclude_modules=["up_proj"]),
    "gpt2": dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    "gpt-neox": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "bloom-odd": dict(r=4, lora_alpha=8, target_modules=["query_key_value", "dense_4h_to_h"]),
    "opt-350m": dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
}
LENGTHS, SKIPPED = (30, 13), (4, 1)  # tokens of the sequences, and how many of each predict nothing


def make(models, out, name, options):
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32)
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    peft.save_pretrained(folder)
    (folder / "README.md").unlink()
    prompt = load_file(models / name / "goldens.safetensors")["prompt"].long()
    sequences = [prompt[:LENGTHS[0]], prompt[LENGTHS[0]:LENGTHS[0] + LENGTHS[1]]]
    peft.eval()  # GPT-2 has dropouts of its own
    total = 0
    for ids, skipped in zip(sequences, SKIPPED):
        logits = peft(ids[None]).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits[skipped:-1], ids[skipped + 1:], reduction="sum")
    total.backward()
    tensors = {"ids": torch.cat(sequences).int(), "lengths": torch.tensor(LENGTHS).int(), "skipped": torch.tensor(SKIPPED).int(),
               "loss": total.detach()[None]}
    for key, parameter in peft.named_parameters():
        if parameter.requires_grad:
            tensors[key.replace(".default", "").removeprefix("base_model.model.")] = parameter.grad
    with torch.no_grad():
        tensors["logits"] = peft(sequences[0][None]).logits[0].contiguous()
    save_file(tensors, folder / "goldens.safetensors")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(str(models / name), name))


if __name__ == "__main__":
    for case, case_options in CASES.items():
        make(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), case, case_options)

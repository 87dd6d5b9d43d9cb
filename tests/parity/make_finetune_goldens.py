#!/usr/bin/env python3
"""The losses of a short training run by torch + PEFT over a tiny model, for tests/data/finetune.json.

    python tests/parity/make_finetune_goldens.py tests/data/models/llama tests/data/training/llama > tests/data/finetune.json

Every step trains on all samples, so that their order does not matter: AdamW, clipping to 1, a linear schedule with warm-up.
"""
import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

STEPS, WARMUP, RATE, DECAY = 12, 2, 2e-2, 0.1


def main(base, adapter):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter, is_trainable=True)
    generator = torch.Generator().manual_seed(3)
    samples = [torch.randint(3, 160, (length,), generator=generator) for length in (20, 7, 33, 12)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    targets = sum(len(ids) - 1 for ids in samples)
    losses, norms = [], []
    for _ in range(STEPS):
        loss = sum(torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="sum")
                   for ids in samples) / targets
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(json.dumps({"steps": STEPS, "warmup_steps": WARMUP, "learning_rate": RATE, "weight_decay": DECAY,
                      "samples": [ids.tolist() for ids in samples], "losses": losses, "grad_norms": norms}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

#!/usr/bin/env python3
"""A LoRA run by transformers + PEFT (+ bitsandbytes): losses, tokens a second, evaluation loss; one JSON line.

usage: finetune.py MODEL TRAIN.jsonl EVAL.jsonl [--level nf4+dq] [--epochs 3] [--batch-size 4] [--r 8] [--alpha 32] [--seed 42]
                   [--learning-rate 2e-4] [--schedule linear] [--warmup-steps 0] [--max-steps N: of the whole schedule]
                   [--device cpu] [--optim adamw|adamw_8bit]

Lines hold `messages`; the loss counts the assistant's tokens, as `nibble finetune --completion-only-loss` does.
"""
import argparse
import json
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, get_scheduler

from levels import load


def read(tokenizer, path):
    samples = []
    for line in open(path):
        messages = json.loads(line)["messages"]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        before = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
        samples.append((ids, start))
    return samples


def batch_of(samples, device):
    longest = max(len(ids) for ids, _ in samples)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in samples])
    mask = torch.tensor([[1] * len(x) + [0] * (longest - len(x)) for x, _ in samples])
    labels = torch.tensor([[-100] * start + x[start:] + [-100] * (longest - len(x)) for x, start in samples])
    return dict(input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device))


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "train", "eval"):
        parser.add_argument(name)
    parser.add_argument("--level", default="nf4+dq")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-steps", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--schedule", default="linear")
    parser.add_argument("--warmup-steps", type=int, default=0)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--optim", default="adamw", choices=["adamw", "adamw_8bit"])
    parser.add_argument("--seed", type=int, default=42)
    a = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(a.seed)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    model = load(a.model, a.level, a.device)
    model = get_peft_model(model, LoraConfig(r=a.r, lora_alpha=a.alpha, lora_dropout=0.05, target_modules="all-linear",
                                             task_type="CAUSAL_LM"))
    train, evaluation = read(tokenizer, a.train), read(tokenizer, a.eval)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if a.optim == "adamw_8bit":
        import bitsandbytes
        optimizer = bitsandbytes.optim.AdamW8bit(parameters, lr=a.learning_rate, weight_decay=0)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=a.learning_rate, weight_decay=0)
    steps = a.epochs * -(-len(train) // a.batch_size)
    schedule = get_scheduler(a.schedule, optimizer, a.warmup_steps, steps)
    losses, tokens, seconds, step = [], 0, 0.0, 0
    model.train()
    for _ in range(a.epochs):
        order = torch.randperm(len(train)).tolist()
        for begin in range(0, len(order), a.batch_size):
            if a.max_steps and step == a.max_steps:
                break
            samples = [train[i] for i in order[begin:begin + a.batch_size]]
            started = time.perf_counter()
            with torch.autocast(a.device, dtype=torch.bfloat16):
                loss = model(**batch_of(samples, a.device)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step > 0:  # the first step warms up
                seconds += time.perf_counter() - started
                tokens += sum(len(ids) for ids, _ in samples)
            losses.append(loss.item())
            step += 1
    model.eval()
    total = count = 0
    with torch.no_grad():
        for begin in range(0, len(evaluation), a.batch_size):
            batch = batch_of(evaluation[begin:begin + a.batch_size], a.device)
            found = (batch["labels"][:, 1:] != -100).sum().item()
            total += model(**batch).loss.item() * found
            count += found
    print(json.dumps({"who": "transformers+peft+bitsandbytes", "level": a.level, "steps": step, "losses": losses,
                      "eval_loss": total / count, "tokens_per_second": tokens / max(seconds, 1e-9)}))


if __name__ == "__main__":
    main()

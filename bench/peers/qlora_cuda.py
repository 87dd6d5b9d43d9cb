#!/usr/bin/env python3
"""Training steps of transformers + PEFT + bitsandbytes over random weights: the peer of bench_train.

usage: qlora_cuda.py CONFIG_DIRECTORY [--runs 4x1024c,1x1024c,4x1024] [--level nf4+dq] [--steps 3]

A run is BATCHxLENGTH, with "c" for gradient checkpointing. PEFT and bitsandbytes may lie in a folder of PYTHONPATH.
"""
import argparse
import statistics
import time

import torch
import transformers

from random_llama import build


def with_adapter(model, level):
    import peft

    model.config.use_cache = False
    model.is_loaded_in_4bit = level != "bf16"
    if model.is_loaded_in_4bit:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model.enable_input_require_grads()
    return peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05,
                                                      target_modules="all-linear", task_type="CAUSAL_LM"))


def measure(model, trained, optimizer, run, arguments):
    """One line: tokens a second from the median step after two, and peak memory."""
    has_checkpointing = run.endswith("c")
    batch, length = map(int, run.removesuffix("c").split("x"))
    if has_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    is_gpu = arguments.device != "cpu"
    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    synchronize = torch.cuda.synchronize if is_gpu else lambda: None
    seconds = []
    for step in range(2 + arguments.steps):
        ids = torch.randint(0, model.config.vocab_size, (batch, length), device=arguments.device)
        synchronize()
        begin = time.perf_counter()
        with torch.autocast("cuda" if is_gpu else "cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        if step >= 2:
            seconds.append(time.perf_counter() - begin)
    step = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() / 1e9 if is_gpu else float("nan")
    print(f"{arguments.level} {batch}x{length} checkpointing {'on' if has_checkpointing else 'off'}: "
          f"{batch * length / step:.0f} tok/s, step {step * 1e3:.1f} ms, peak {peak:.2f} GB, loss {loss.item():.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--runs", default="4x1024c,1x1024c,4x1024")
    parser.add_argument("--level", default="nf4+dq")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    import bitsandbytes as bnb
    import peft

    begin = time.perf_counter()
    model = with_adapter(build(arguments.config, arguments.level, arguments.device), arguments.level)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = (bnb.optim.PagedAdamW8bit if arguments.device != "cpu" else bnb.optim.AdamW8bit)(trained, lr=1e-4)
    print(f"transformers {transformers.__version__}, PEFT {peft.__version__}, bitsandbytes {bnb.__version__}, torch "
          f"{torch.__version__}; {sum(p.numel() for p in trained)} trained; built in {time.perf_counter() - begin:.1f} s",
          flush=True)
    for run in arguments.runs.split(","):
        measure(model, trained, optimizer, run, arguments)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Optimizer steps of bitsandbytes and of torch on a GPU, over the arrays that bench_cuda_optim steps.

optimizers.py [--count N] [--rounds N]: milliseconds a step, the best of several runs of ten.
"""

import argparse
import time

import torch


def lora_sizes() -> list[int]:
    shapes = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]
    return [16 * side for _ in range(32) for shape in shapes for side in shape]


def parameters(sizes: list[int], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    made = []
    for size in sizes:
        p = torch.nn.Parameter(torch.randn(size, device="cuda").mul_(0.02).to(dtype))
        p.grad = torch.randn(size, device="cuda").mul_(0.02).to(dtype)
        made.append(p)
    return made


def milliseconds(optimizer: torch.optim.Optimizer, rounds: int) -> float:
    best = float("inf")
    for i in range(rounds + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(10):
            optimizer.step()
        torch.cuda.synchronize()
        if i:
            best = min(best, (time.perf_counter() - begin) * 100)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    contenders = {"torch AdamW(fused)": lambda p: torch.optim.AdamW(p, lr=1e-5, fused=True)}
    try:
        import bitsandbytes as bnb

        for name in ("AdamW8bit", "AdamW32bit", "Lion8bit", "PagedAdamW8bit", "PagedAdamW32bit"):
            contenders[f"bitsandbytes {name}"] = lambda p, name=name: getattr(bnb.optim, name)(p, lr=1e-5)
    except ImportError as error:
        print(f"bitsandbytes: {error}")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    rows = [("one tensor", [arguments.count], torch.bfloat16), ("448 tensors", lora_sizes(), torch.float32)]
    for what, sizes, dtype in rows:
        for name, make in contenders.items():
            p = parameters(sizes, dtype)
            try:
                ms = milliseconds(make(p), arguments.rounds)
                print(f"{name:28} {what:12} {str(dtype)[6:]:9} {ms:10.3f} ms", flush=True)
            except Exception as error:  # a contender that fails is a result
                print(f"{name:28} {what:12} {error!r}"[:200], flush=True)
            del p
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

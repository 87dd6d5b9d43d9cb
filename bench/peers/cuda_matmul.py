#!/usr/bin/env python3
"""GPU matmul and quantization of bitsandbytes and of torch's dense bf16, timed as bench_cuda_matmul times ours:
CUDA graphs over rotating weight copies, median of replays. Prints one line a row."""

import argparse
import statistics

import torch

ROTATED_BYTES = 320 << 20


def seconds_of(work):
    """Median seconds of one replay of `work` as a graph."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(15):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def eager_seconds_of(work):
    """Median seconds of `work` launched by the host, for what a graph does not record."""
    work()
    times = []
    for _ in range(15):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def row(what, rows, cols, m, seconds):
    flops = 2 * rows * cols * m
    print(f"{what:<14} {rows:6} x {cols:5}  m {m:5}  {seconds * 1e6:8.1f} us  {flops / seconds * 1e-12:6.1f} TFLOP/s", flush=True)


def dense(rows, cols, ms):
    copies = ROTATED_BYTES // (rows * cols * 2) + 2
    weights = [torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    for m in ms:
        x = torch.randn(m, cols, device="cuda", dtype=torch.bfloat16)
        work = lambda: [torch.nn.functional.linear(x, w) for w in weights]
        row("torch bf16", rows, cols, m, seconds_of(work) / copies)


def four_bit(rows, cols, ms, nested):
    import bitsandbytes.functional as functional
    import bitsandbytes as bnb

    copies = ROTATED_BYTES // (rows * cols // 2) + 2
    w = torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16)
    packed = [functional.quantize_4bit(w, quant_type="nf4", compress_statistics=nested) for _ in range(copies)]
    for m in ms:
        x = torch.randn(m, cols, device="cuda", dtype=torch.bfloat16)
        work = lambda: [bnb.matmul_4bit(x, q.t(), state) for q, state in packed]
        row("bnb nf4+dq" if nested else "bnb nf4", rows, cols, m, seconds_of(work) / copies)


def quantize(rows, cols):
    import bitsandbytes.functional as functional

    w = torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16)
    packed, state = functional.quantize_4bit(w, quant_type="nf4")
    size = rows * cols * 2.5625
    code = functional.get_4bit_type("nf4", device="cuda")  # made once: copying it from the host is no part of quantizing
    functional.get_4bit_type = lambda *_, **__: code
    for what, timed, work in (("bnb quantize", eager_seconds_of, lambda: functional.quantize_4bit(w, quant_type="nf4")),
                              ("bnb dequantize", seconds_of, lambda: functional.dequantize_4bit(packed, state))):
        seconds = timed(work)
        print(f"{what:<14} nf4 {seconds * 1e6:9.1f} us  {size / seconds * 1e-9:6.0f} GB/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-bitsandbytes", action="store_true", help="torch's dense rows only")
    args = parser.parse_args()
    with torch.inference_mode():
        ms = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048]
        dense(11008, 4096, ms)
        dense(4096, 4096, [1, 16, 64, 512, 2048])
        dense(4096, 11008, [1, 16, 64, 512, 2048])
        if args.no_bitsandbytes:
            return
        four_bit(11008, 4096, [1, 16, 64, 512, 2048], True)
        quantize(28672, 8192)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Decoding and prefill of transformers + bitsandbytes over random weights: the peer of `nibble bench` on a GPU.

usage: decode_cuda.py CONFIG_DIRECTORY [--level nf4+dq] [--batch 1] [--length 512] [--prefill 2048]

Prints milliseconds a step: as generate() runs it, and as one CUDA graph over a static cache (every host cost removed)."""
import argparse
import statistics
import time

import torch
import transformers

from random_llama import build


def seconds_of(work, count):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count


def eager(model, batch, length):
    """Seconds a token of generate(): what more tokens add."""
    ids = torch.randint(5, model.config.vocab_size, (batch, length), device="cuda")

    def generate(tokens):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                       do_sample=False)
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    generate(2)
    return (generate(34) - generate(2)) / 32


def graphed(model, batch, length):
    """Seconds of a step replayed as a CUDA graph."""
    cache = transformers.StaticCache(config=model.config, max_cache_len=length + 64)
    ids = torch.randint(5, model.config.vocab_size, (batch, length), device="cuda")
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = ids[:, :1].clone()
    position = torch.tensor([length], device="cuda")
    positions = position[None].expand(batch, -1).contiguous()

    def step():
        return model(token, past_key_values=cache, use_cache=True, cache_position=position,
                     position_ids=positions).logits

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    for _ in range(3):
        graph.replay()
    return statistics.median(seconds_of(graph.replay, 10) for _ in range(5))


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--level", default="nf4+dq")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--prefill", type=int, default=2048)
    parser.add_argument("--no-graph", action="store_true")
    arguments = parser.parse_args()
    model = build(arguments.config, arguments.level)
    for batch in arguments.batch:
        where = f"{arguments.level} batch {batch} after {arguments.length}"
        print(f"{where}: eager {eager(model, batch, arguments.length) * 1e3:.2f} ms a step", flush=True)
        if not arguments.no_graph:
            print(f"{where}: graph {graphed(model, batch, arguments.length) * 1e3:.2f} ms a step", flush=True)
    if arguments.prefill:
        ids = torch.randint(5, model.config.vocab_size, (1, arguments.prefill), device="cuda")

        def prefill():
            model(ids, use_cache=True, logits_to_keep=1)

        prefill()
        seconds = statistics.median(seconds_of(prefill, 1) for _ in range(5))
        print(f"{arguments.level} prefill {arguments.prefill}: {seconds * 1e3:.1f} ms, "
              f"{arguments.prefill / seconds:.0f} tok/s", flush=True)
    print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Prefill and decode rates of transformers + bitsandbytes on the CPU, batch 1, greedy; one JSON line per level.

usage: generate.py MODEL [LEVEL...] [--prompt-length 128] [--new-tokens 64] [--repeats 3]
"""
import argparse
import json
import time

import torch

from levels import LEVELS, load


@torch.inference_mode()
def rates(model, prompt_length, new_tokens):
    """(prefill tokens/s, decode tokens/s) of one run with a key-value cache."""
    ids = torch.arange(1, prompt_length + 1)[None] * 37 % (model.config.vocab_size - 1000) + 500
    started = time.perf_counter()
    out = model(ids, use_cache=True)
    prefilled = time.perf_counter()
    token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
    for _ in range(new_tokens):
        out = model(token, past_key_values=cache, use_cache=True)
        token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
    return prompt_length / (prefilled - started), new_tokens / (time.perf_counter() - prefilled)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("levels", nargs="*", default=["nf4"])
    parser.add_argument("--prompt-length", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    for level in arguments.levels:
        started = time.perf_counter()
        model = load(arguments.model, level)
        load_seconds = time.perf_counter() - started
        runs = [rates(model, arguments.prompt_length, arguments.new_tokens) for _ in range(arguments.repeats)]
        print(json.dumps({"who": "transformers+bitsandbytes", "level": level, "prompt_length": arguments.prompt_length,
                          "load_seconds": load_seconds, "prefill_tokens_per_second": max(run[0] for run in runs),
                          "decode_tokens_per_second": max(run[1] for run in runs)}), flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Perplexity that transformers + bitsandbytes gives on a text: windows of CONTEXT tokens, each token scored once.

usage: perplexity.py MODEL TEXT [LEVEL...] [--context 512] [--stride 512] [--device cuda]      one JSON line per level
"""
import argparse
import json
import math
import time

import torch
from transformers import AutoTokenizer

from levels import LEVELS, load


@torch.inference_mode()
def perplexity(model, ids, context, stride):
    """As the transformers guide computes it: a window's first token has nothing before it and is not scored."""
    total, scored, previous_end = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        window = torch.tensor([ids[begin:end]], device=model.device)
        logits = model(window).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none").double()
        new = losses[max(0, len(losses) - (end - previous_end)):]
        total, scored, previous_end = total + new.sum().item(), scored + len(new), end
        if end == len(ids):
            break
    return math.exp(total / scored), scored


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("levels", nargs="*", default=list(LEVELS))
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    with open(arguments.text, encoding="utf-8", errors="replace", newline="") as file:
        ids = tokenizer(file.read())["input_ids"]
    for level in arguments.levels or list(LEVELS):
        started = time.perf_counter()
        value, tokens = perplexity(load(arguments.model, level, arguments.device), ids, arguments.context, arguments.stride)
        print(json.dumps({"who": "transformers+bitsandbytes", "level": level, "blocksize": 64, "perplexity": value,
                          "tokens": tokens, "input_tokens": len(ids), "seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Greedy text of a real model: the nibble command against transformers in fp32, token by token.

    python tests/parity/compare_demo_model.py build/release/nibble models/smollm2-135m-instruct

Unquantized, with NF4 weights, and with LLM.int8() weights (quantized and dequantized again by nibble; by bitsandbytes on
the other side). Prints how many of the tokens agree and exits with 1 unless all do.
"""
import json
import subprocess
import sys
import tempfile

import torch
from transformers import AutoTokenizer

from make_model_goldens import four_bit, greedy, int8, load, replaced

PROMPT = "<|im_start|>user\nWrite a long story about a lighthouse keeper and the sea.<|im_end|>\n<|im_start|>assistant\n"
COUNT = 220


def nibble(program, *arguments):
    done = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def generate(program, model, *options):
    result = nibble(program, "generate", model, "-p", PROMPT, "--max-new-tokens", str(COUNT), "--dtype", "float32",
                    "--json", *options)
    return result["token_ids"][-result["new_tokens"]:]


def int8_round_trip(program, model):
    with tempfile.TemporaryDirectory() as scratch:
        nibble(program, "quantize", model, scratch + "/int8", "--load-in-8bit", "--dtype", "float32", "--json")
        nibble(program, "dequantize", scratch + "/int8", scratch + "/plain", "--dtype", "float32", "--json")
        return generate(program, scratch + "/plain")


def main(program, path):
    ids = AutoTokenizer.from_pretrained(path)(PROMPT)["input_ids"]
    cases = {
        "float32": (lambda: load(path, dtype=torch.float32), lambda: generate(program, path)),
        "nf4": (lambda: replaced(path, four_bit("nf4", False)),
                lambda: generate(program, path, "--load-in-4bit", "--bnb-4bit-quant-type", "nf4")),
        "llm.int8": (lambda: replaced(path, int8), lambda: int8_round_trip(program, path)),
    }
    is_equal = True
    for name, (theirs, ours) in cases.items():
        expected, found = greedy(theirs(), [ids], COUNT)[0].tolist()[len(ids):], ours()
        agreeing = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), min(len(expected), len(found)))
        # nibble stops at the end of the text; transformers was told to go on.
        is_equal &= agreeing == len(found)
        print(f"{name}: {agreeing} tokens agree, nibble wrote {len(found)}, transformers {len(expected)}")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

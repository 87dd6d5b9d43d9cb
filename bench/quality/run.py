#!/usr/bin/env python3
"""Perplexity of a model at every level with nibble; one JSON line per level, as bench/peers/perplexity.py prints them.

usage: run.py NIBBLE MODEL TEXT [--context 512] [--stride 512] [--levels bf16,nf4-64]
"""
import argparse
import json
import subprocess
import time

FOUR_BIT = ["--load-in-4bit", "--bnb-4bit-compute-dtype", "bfloat16"]
LEVELS = {"bf16": [], "int8": ["--load-in-8bit"]}
for blocksize in (64, 128):
    for quant_type in ("nf4", "fp4"):
        options = [*FOUR_BIT, "--bnb-4bit-quant-type", quant_type, "--bnb-4bit-blocksize", str(blocksize)]
        LEVELS[f"{quant_type}-{blocksize}"] = options
        LEVELS[f"{quant_type}+dq-{blocksize}"] = [*options, "--bnb-4bit-use-double-quant"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--context", default="512")
    parser.add_argument("--stride", default="512")
    parser.add_argument("--levels", default=",".join(LEVELS))
    arguments = parser.parse_args()
    for level in arguments.levels.split(","):
        command = [arguments.nibble, "perplexity", arguments.model, "--file", arguments.text, "--context", arguments.context,
                   "--stride", arguments.stride, "--json", *LEVELS[level]]
        started = time.perf_counter()
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        name, _, blocksize = level.partition("-")
        print(json.dumps({"who": "nibble", "level": name, "blocksize": blocksize, "perplexity": result["perplexity"],
                          "tokens": result["tokens"], "seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Whole-model speed on the CPU: nibble beside its memory-bandwidth limit, transformers + bitsandbytes and llama.cpp.

usage: run.py NIBBLE MODEL [--llama-bench PROGRAM --gguf FILE] [--peer-python PYTHON] [--rounds 3] [--json FILE]

Every contender runs once in each round, in turn, so that they meet the same machine; the best of the rounds counts.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
NF4 = ["--load-in-4bit", "--bnb-4bit-quant-type", "nf4", "--bnb-4bit-compute-dtype", "bfloat16"]
PROMPT, NEW = 128, 64


def run(command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stderr[-2000:]}")
    return result.stdout


def nibble_rates(nibble, model, *options):
    row = json.loads(run([nibble, "bench", model, "--threads", 2, "--prompt-lengths", PROMPT, "--new-tokens", NEW + 1,
                          "--repeats", 3, "--json", *options]))["rows"][0]
    return {"prefill": row["prefill_tokens_per_second"], "decode": row["decode_tokens_per_second"],
            "limit": row["decode_limit_tokens_per_second"], "bandwidth": row["read_bandwidth_bytes_per_second"]}


def llama_rates(program, gguf):
    """llama-bench's own measure: prompt processing of PROMPT tokens, then text generation of NEW tokens."""
    rows = json.loads(run([program, "-m", gguf, "-t", 2, "-p", PROMPT, "-n", NEW, "-r", 3, "-o", "json"]))
    best = {("prefill" if row["n_prompt"] else "decode"): max(row["samples_ts"]) for row in rows}
    return best


def peer_rates(python, model, level):
    row = json.loads(run([python, HERE.parent / "peers/generate.py", model, level, "--prompt-length", PROMPT,
                          "--new-tokens", NEW, "--repeats", 2]).splitlines()[-1])
    return {"prefill": row["prefill_tokens_per_second"], "decode": row["decode_tokens_per_second"]}


def first_token_ms(nibble, model):
    """Wall clock of a whole process that loads a quantized directory and makes one token."""
    command = [nibble, "generate", model, "-p", "The capital of France is", "--max-new-tokens", "1", "--threads", "2"]
    times = []
    for _ in range(10):
        started = time.perf_counter()
        run(command)
        times.append((time.perf_counter() - started) * 1e3)
    return {"best_ms": min(times), "median_ms": statistics.median(times)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--llama-bench")
    parser.add_argument("--gguf")
    parser.add_argument("--peer-python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()

    contenders = {
        "nibble nf4": lambda: nibble_rates(arguments.nibble, arguments.model, *NF4),
        "nibble nf4, head too": lambda: nibble_rates(arguments.nibble, arguments.model, *NF4, "--llm-int8-skip-modules", ""),
        "nibble int8": lambda: nibble_rates(arguments.nibble, arguments.model, "--load-in-8bit"),
        "nibble bf16": lambda: nibble_rates(arguments.nibble, arguments.model),
    }
    if arguments.llama_bench:
        contenders["llama.cpp Q4_0"] = lambda: llama_rates(arguments.llama_bench, arguments.gguf)
    if arguments.peer_python:
        contenders["transformers + bitsandbytes nf4"] = lambda: peer_rates(arguments.peer_python, arguments.model, "nf4")

    rounds = []
    for _ in range(arguments.rounds):
        rounds.append({name: measure() for name, measure in contenders.items()})
    best = {name: {key: max(one[name][key] for one in rounds) for key in rounds[0][name]} for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        small = pathlib.Path(folder) / "nf4"
        run([arguments.nibble, "quantize", arguments.model, small, *NF4])
        first = first_token_ms(arguments.nibble, small)

    print(f"prompt of {PROMPT} tokens, {NEW} new tokens, batch 1, 2 threads; best of {arguments.rounds} rounds")
    print(f"{'':42} {'prefill t/s':>12} {'decode t/s':>12} {'limit t/s':>10} {'of limit':>9}")
    for name, row in best.items():
        share = max((one[name]["decode"] / one[name]["limit"] for one in rounds if "limit" in one[name]), default=None)
        limit = f"{row['limit']:10.0f} {100 * share:8.0f}%" if share else ""
        print(f"{name:42} {row['prefill']:12.1f} {row['decode']:12.1f} {limit}")
    print(f"first token, whole process, pre-quantized: best {first['best_ms']:.0f} ms, median {first['median_ms']:.0f} ms")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({"best": best, "rounds": rounds, "first_token": first}, indent=1))


if __name__ == "__main__":
    main()

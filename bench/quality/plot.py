#!/usr/bin/env python3
"""Draws docs/results/quality.png from the JSON lines of bench/quality/run.py and bench/peers/perplexity.py.

usage: plot.py OUT.png FILE.jsonl...
"""
import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Bits a weight of a quantized linear layer, statistics included (block 64, 128); int8 has one fp32 a row.
BITS = {"bf16": (16, 16), "int8": (8, 8), "nf4": (4.5, 4.25), "fp4": (4.5, 4.25), "nf4+dq": (4.127, 4.063), "fp4+dq": (4.127, 4.063)}


def main(out, files):
    rows = [json.loads(line) for name in files for line in open(name, encoding="utf-8") if line.strip()]
    baseline = next(row["perplexity"] for row in rows if row["who"] == "nibble" and row["level"] == "bf16")
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    styles = {("nibble", "64"): ("o", "C0", "nibble"), ("nibble", "128"): ("s", "C1", "nibble, block 128"),
              ("transformers+bitsandbytes", "64"): ("x", "C3", "transformers + bitsandbytes")}
    named = set()
    for row in rows:
        if row["level"] not in BITS or row["level"] == "bf16":
            continue
        key = (row["who"], str(row["blocksize"]) or "64")
        marker, color, label = styles[key]
        bits = BITS[row["level"]][key[1] == "128"]
        axes.plot(bits, row["perplexity"], marker, color=color, markersize=8, fillstyle="none" if marker != "x" else "full",
                  label=None if label in named else label)
        if row["who"] == "nibble":
            axes.annotate(row["level"], (bits, row["perplexity"]), textcoords="offset points", xytext=(8, 4), fontsize=8)
        named.add(label)
    axes.axhline(baseline, color="gray", linewidth=1, linestyle="--")
    axes.annotate("bfloat16", (8.1, baseline), textcoords="offset points", xytext=(-40, 4), fontsize=8, color="gray")
    axes.set_xlabel("bits a weight of a quantized layer, statistics included")
    axes.set_ylabel("perplexity (lower is better)")
    axes.set_title("SmolLM2-135M-Instruct on Newton's Opticks, windows of 512", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

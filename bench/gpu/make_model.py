#!/usr/bin/env python3
"""Writes a checkpoint of random bfloat16 weights for a Llama config: config.json and one model.safetensors.

usage: make_model.py CONFIG.json OUT_DIRECTORY
"""
import array
import json
import pathlib
import random
import shutil
import struct
import sys


def shapes(config):
    """(name, shape) of every tensor, in the order of the file."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = hidden // config["num_attention_heads"]
    kv = head * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "self_attn.q_proj.weight", (hidden, hidden)
        yield layer + "self_attn.k_proj.weight", (kv, hidden)
        yield layer + "self_attn.v_proj.weight", (kv, hidden)
        yield layer + "self_attn.o_proj.weight", (hidden, hidden)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        yield layer + "mlp.gate_proj.weight", (inner, hidden)
        yield layer + "mlp.up_proj.weight", (inner, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def bfloat16(values):
    """The bytes of numbers as bfloat16, cut rather than rounded."""
    floats = array.array("f", values)
    words = array.array("H")
    words.frombytes(floats.tobytes())
    return words[1::2].tobytes()


def main(config_path, out):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(config_path, out / "config.json")
    config = json.loads(pathlib.Path(config_path).read_text(encoding="utf-8"))
    random.seed(1)
    period = bfloat16(random.gauss(0, 0.02) for _ in range(1 << 20)) * 16
    header, end = {}, 0
    for name, shape in shapes(config):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + 2 * count]}
        end += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, entry in header.items():
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            if len(entry["shape"]) == 1:
                file.write(bfloat16([1.0]) * (size // 2))
                continue
            for begin in range(0, size, len(period)):
                file.write(period[:min(len(period), size - begin)])
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))

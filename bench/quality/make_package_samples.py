#!/usr/bin/env python3
"""Instruction samples for bench/quality: Debian packages by name, with their one-line description and tags as the answer.

    apt-cache dumpavail | bench/quality/make_package_samples.py OUT_DIRECTORY [TRAIN EVAL]

Writes train.jsonl and eval.jsonl (400 and 100 lines) of {"messages": [user, assistant]}: packages of Debian 12 that have
two to five tags, one a source, in the order of a hash of their names; no source has packages in both files.
"""
import hashlib
import json
import pathlib
import sys


def packages(text):
    for block in text.split("\n\n"):
        fields, last = {}, None
        for line in block.splitlines():
            if line.startswith(" ") and last:
                fields[last] += line
            elif ":" in line:
                last, value = line.split(":", 1)
                fields[last] = value.strip()
        if "Package" in fields:
            yield fields


def sample(fields):
    tags = sorted(tag.strip() for tag in fields["Tag"].split(","))
    question = f"Describe the Debian package {fields['Package']} and give its tags."
    answer = f"{fields['Description']}. Tags: {', '.join(tags)}."
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def main(out, train=400, held_out=100):
    chosen = {}
    for fields in packages(sys.stdin.read()):
        tags = fields.get("Tag", "")
        if not 1 <= tags.count(",") <= 4 or "{" in tags or not fields.get("Description", "").isascii():
            continue
        chosen.setdefault(fields.get("Source", fields["Package"]).split()[0], fields)
    ordered = sorted(chosen.values(), key=lambda fields: hashlib.sha256(fields["Package"].encode()).hexdigest())
    for name, part in (("train", ordered[:train]), ("eval", ordered[train:train + held_out])):
        text = "".join(json.dumps(sample(fields)) + "\n" for fields in part)
        (pathlib.Path(out) / f"{name}.jsonl").write_text(text)
        print(name, len(part), hashlib.sha256(text.encode()).hexdigest()[:16])


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

#!/usr/bin/env python3
"""Fails when a file includes a header of a module that layers.txt does not allow it.

usage: check_layers.py LAYERS ROOT...        e.g. check_layers.py tools/layers.txt include src cli

A ROOT is a folder whose files name themselves by their path below it, as includes do; `cli` is a module of its own.
Test files (*_test.cpp) may also include what the file layers_test.txt beside LAYERS grants their module.
"""
import graphlib
import pathlib
import re
import sys

INCLUDE = re.compile(r'\s*#\s*include\s*["<]([^">]+)[">]')
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def parse(path):
    """{module: set of modules it may include} of the lines 'module: allowed...  # why'."""
    rules = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        module, colon, allowed = (part.strip() for part in line.partition(":"))
        if not colon or not module or module in rules:
            sys.exit(f"{path}:{number}: expected one 'module: allowed...' line per module, found '{line}'")
        rules[module] = set(allowed.split())
    return rules


def reject_unknown(path, rules, declared):
    for module, allowed in rules.items():
        if missing := sorted((allowed | {module}) - declared):
            sys.exit(f"{path}: {module} names modules that are not declared: {' '.join(missing)}")


def reject_cycles(path, rules):
    try:
        graphlib.TopologicalSorter(rules).prepare()
    except graphlib.CycleError as error:
        sys.exit(f"{path}: cycle: {' -> '.join(error.args[1])}")


def find_module(name, declared):
    """The nearest declared ancestor of a path, the header itself (without suffix) first; None if there is none."""
    path = pathlib.PurePosixPath(name)
    return next((str(p) for p in (path.with_suffix(""), *path.parents) if str(p) in declared), None)


def sources(root, declared):
    """(file, its name as includes spell it). A root that is itself a module, as cli is, keeps its own name in front."""
    base = root.parent if root.name in declared and root.name != "nibble" else root
    for path in sorted(root.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file():
            yield path, path.relative_to(base).as_posix()


def violations(root, layers, extra):
    for path, name in sources(root, layers.keys()):
        module = find_module(name, layers.keys())
        if module is None:
            yield f"{path}:1: belongs to no module of the layers file"
            continue
        allowed = layers[module] | {module}
        if path.stem.endswith("_test"):
            allowed = allowed | extra.get(module, set())
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            match = INCLUDE.match(line)
            target = find_module(match.group(1), layers.keys()) if match else None
            if target and target not in allowed:
                yield f"{path}:{number}: {module} may not include {match.group(1)} (module {target})"


def main(layers_file, *roots):
    path = pathlib.Path(layers_file)
    layers = parse(path)
    reject_unknown(path, layers, layers.keys())
    reject_cycles(path, layers)
    test_path = path.with_name(path.stem + "_test.txt")
    extra = parse(test_path) if test_path.exists() else {}
    reject_unknown(test_path, extra, layers.keys())
    found = []
    for root in map(pathlib.Path, roots):
        if not root.is_dir():
            sys.exit(f"{root}: no such directory")
        found += violations(root, layers, extra)
    print("\n".join(found) if found else "layers: ok")
    return 1 if found else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))

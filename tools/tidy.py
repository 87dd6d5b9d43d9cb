#!/usr/bin/env python3
"""Runs clang-tidy over the files of compile_commands.json, most recently changed first, within a time budget.

usage: tidy.py BUILD_FOLDER SECONDS        0 seconds: no limit
"""
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time


def files_of(build):
    """C++ files of the project that the build compiles, each once: those changed last come first. Not those of nvcc, whose
    options clang does not know."""
    entries = json.loads((build / "compile_commands.json").read_text())
    files = {pathlib.Path(entry["directory"], entry["file"]).resolve() for entry in entries}
    root = pathlib.Path.cwd().resolve()
    inside = [path.relative_to(root) for path in files
              if path.suffix != ".cu" and path.is_relative_to(root) and not path.is_relative_to(build.resolve())]
    log = subprocess.run(["git", "log", "--name-only", "--format="], capture_output=True, text=True).stdout.split()
    age = {name: position for position, name in reversed(list(enumerate(log)))}
    return sorted(inside, key=lambda path: (age.get(str(path), len(log)), path))


def main(build, seconds):
    deadline = time.monotonic() + seconds if seconds else float("inf")
    files = files_of(build)

    def check(path):
        if time.monotonic() > deadline:
            return path, None
        return path, subprocess.run(["clang-tidy", "--quiet", "--extra-arg=-Wno-unknown-warning-option", "-p", str(build), str(path)], capture_output=True, text=True)

    checked = failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, result in pool.map(check, files):
            if result is None:
                continue
            checked += 1
            if result.returncode:
                failed += 1
                print(result.stdout, result.stderr, sep="", flush=True)
    print(f"clang-tidy: {checked} of {len(files)} files checked, {failed} with findings")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(pathlib.Path(sys.argv[1]), float(sys.argv[2])))

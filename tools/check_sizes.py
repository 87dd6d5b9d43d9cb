#!/usr/bin/env python3
"""Lists files and functions that outgrew the house rules; fails for a source above 800 lines.

usage: check_sizes.py ROOT...        e.g. check_sizes.py include src cli tests

Sources above 500 lines, headers above 150 and functions above 80 (aim: 40) are listed without failing.
"""
import pathlib
import re
import sys

SOURCE_LISTED, SOURCE_MAX, HEADER_LISTED, FUNCTION_LISTED = 500, 800, 150, 80
SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".py"}
# A function opens at the line with its '{' when the text before looks like a parameter list; rough, by design.
FUNCTION_OPEN = re.compile(r"^[^#=;]*\)\s*(const|noexcept|override|->[^{]*|\s)*\{$")
NOT_FUNCTION = re.compile(r"^\s*(namespace|struct|class|enum|union|if|for|while|switch|else|do|extern|\})\b")


def function_lengths(lines):
    """(first line, length) of each function of a C++ file, found by its closing brace at the same indentation."""
    for start, line in enumerate(lines):
        if not FUNCTION_OPEN.match(line) or NOT_FUNCTION.match(line):
            continue
        indent = len(line) - len(line.lstrip())
        if indent > 2:  # lambdas and continuation lines
            continue
        closing = " " * indent + "}"
        for end in range(start + 1, len(lines)):
            if lines[end].startswith(closing):
                yield start + 1, end - start + 1
                break


def findings(path):
    """(is_failure, message) of one file."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    count = len(lines)
    is_header = path.suffix in {".h", ".cuh"}
    if count > SOURCE_MAX:
        yield True, f"{path}:1: {count} lines, more than {SOURCE_MAX}: split it by idea"
    elif count > SOURCE_LISTED:
        yield False, f"{path}:1: {count} lines, more than {SOURCE_LISTED}"
    elif is_header and count > HEADER_LISTED:
        yield False, f"{path}:1: header of {count} lines, more than {HEADER_LISTED}"
    if path.suffix != ".py":
        for line, length in function_lengths(lines):
            if length > FUNCTION_LISTED:
                yield False, f"{path}:{line}: function of {length} lines, more than {FUNCTION_LISTED}"


def main(*roots):
    failed = False
    for root in map(pathlib.Path, roots):
        if not root.is_dir():
            sys.exit(f"{root}: no such directory")
        for path in sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES and p.is_file()):
            for is_failure, message in findings(path):
                failed |= is_failure
                print(("error: " if is_failure else "note: ") + message)
    print("sizes: " + ("too large" if failed else "ok"))
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))

"""Writes src/tokenizer/character_classes.cpp: the characters that `tokenizers` takes as marks, punctuation, digits, controls.

Its classes come from several Unicode versions, so they are asked for, character by character, and written down whole.
"""

import pathlib

from tokenizers import normalizers, pre_tokenizers

CHARACTERS = [chr(c) for c in range(0x80, 0x110000) if not 0xD800 <= c < 0xE000]
TEXT = "".join(CHARACTERS)


def dropped_by(normalizer):
    kept = set(normalizer.normalize_str(TEXT))
    return {c for c in CHARACTERS if c not in kept and normalizer.normalize_str(c) == ""}


def bert(**steps):
    off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    return normalizers.BertNormalizer(**(off | steps))


def removed_by(pre_tokenizer):
    kept = {c for text, _ in pre_tokenizer.pre_tokenize_str(TEXT) for c in text}
    return {c for c in CHARACTERS if c not in kept}


def digits():
    found = set()
    for text, _ in pre_tokenizers.Digits(individual_digits=False).pre_tokenize_str("".join("a" + c for c in CHARACTERS)):
        if "a" not in text:
            found.update(text)
    return found


def rows(characters):
    ranges = []
    for code in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    lines, line = [], "   "
    for item in (f" {{0x{a:X}, 0x{b:X}}}," for a, b in ranges):
        if len(line) + len(item) > 120:
            lines.append(line)
            line = "   "
        line += item
    return "\n".join(lines + [line])


def main():
    tables = {
        "MARKS": dropped_by(normalizers.StripAccents()),
        "NONSPACING": dropped_by(bert(strip_accents=True)),
        "CONTROLS": dropped_by(bert(clean_text=True)) - {"\ufffd"},
        "PUNCTUATION": removed_by(pre_tokenizers.Punctuation("removed")),
        "NUMERIC": digits(),
    }
    root = pathlib.Path(__file__).parents[2]
    text = (root / "tests/parity/character_classes.cpp.in").read_text()
    for name, characters in tables.items():
        text = text.replace(f"@{name}@", rows(characters))
    (root / "src/tokenizer/character_classes.cpp").write_text(text)


if __name__ == "__main__":
    main()

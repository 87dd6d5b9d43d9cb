"""Writes src/tokenizer/newer_characters.cpp: what `tokenizers` knows of Unicode and our libraries do not, and the reverse.

`tokenizers` classifies characters by a newer Unicode than PCRE2 10.42 (14.0) and normalizes by an older one than
utf8proc. Run with a Python whose unicodedata is 14.0.0.
"""

import pathlib
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cf".split()


def all_characters():
    return [chr(c) for c in range(0x80, 0x110000) if not 0xD800 <= c < 0xE000 and not 0x40000 <= c < 0xE0000 and c < 0xF0000]


def newer_categories(characters):
    """Characters whose general category differs from unicodedata's."""
    found = {}
    for category in CATEGORIES:
        split = pre_tokenizers.Split(Regex(rf"\P{{{category}}}+"), "removed")
        for text, (start, _) in split.pre_tokenize_str("".join(characters)):
            for offset, character in enumerate(text):
                if unicodedata.category(character) != category:
                    found[ord(character)] = category
                assert characters[start + offset] == character
    return found


def proxy(code, category):
    """A character that PCRE2 knows: same category, same number of bytes, for Han also same script."""
    if category == "Lo" and 0x2A000 <= code < 0x40000:
        return 0x20000
    low, high = (0x80, 0x800) if code < 0x800 else (0x800, 0x10000) if code < 0x10000 else (0x10000, 0x20000)
    return next(c for c in range(low, high) if unicodedata.category(chr(c)) == category)


def inert_characters(characters):
    """Characters that unicodedata normalizes and `tokenizers` leaves alone, everything but NFKD included in it."""
    nfkd, nfd = normalizers.NFKD(), normalizers.NFD()
    inert = []
    for character in characters:
        changes = unicodedata.normalize("NFKD", character) != character
        moves = unicodedata.combining(character) != 0
        if not changes and not moves:
            continue
        known = nfkd.normalize_str(character) != character if changes else any(
            nfd.normalize_str(text) == unicodedata.normalize("NFD", text) != text
            for text in ("a" + character + "\u0334", "a\u0345" + character, "a\u0301" + character))
        if not known and (changes or any(unicodedata.normalize("NFD", t) != t for t in
                                         ("a" + character + "\u0334", "a\u0345" + character, "a\u0301" + character))):
            inert.append(ord(character))
    return inert


def ranges(codes, value):
    result = []
    for code in sorted(codes):
        if result and result[-1][1] == code - 1 and result[-1][2] == value(code):
            result[-1][1] = code
        else:
            result.append([code, code, value(code)])
    return result


def rows(items):
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) > 118:
            lines.append(line)
            line = "   "
        line += " " + item
    return "\n".join(lines + [line])


def main():
    if unicodedata.unidata_version != "14.0.0":
        sys.exit(f"unicodedata is {unicodedata.unidata_version}, expected 14.0.0")
    characters = all_characters()
    newer = newer_categories(characters)
    table = ranges(newer, lambda code: proxy(code, newer[code]))
    inert = ranges(inert_characters(characters), lambda code: 0)
    root = pathlib.Path(__file__).parents[2]
    text = (root / "tests/parity/newer_characters.cpp.in").read_text()
    text = text.replace("@NEWER@", rows(f"{{0x{a:X}, 0x{b:X}, 0x{c:X}}}," for a, b, c in table))
    text = text.replace("@INERT@", rows(f"{{0x{a:X}, 0x{b:X}, 0}}," for a, b, _ in inert))
    (root / "src/tokenizer/newer_characters.cpp").write_text(text)
    print(f"{len(newer)} newer characters in {len(table)} ranges, {len(inert)} inert ranges")


if __name__ == "__main__":
    main()

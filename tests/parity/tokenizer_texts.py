"""Lines of text that a tokenizer can get wrong: scripts, emoji, code, control characters, broken UTF-8, special tokens."""

import random

WORDS = {
    "latin": "the quick brown fox jumps over lazy dog's don't we'll I'VE you're HELLO World naïve café über façade"
    " Straße ſpecial Kelvin ﬁne İstanbul ısı résumé co-operate e-mail x86_64 1st 2nd 3.14 1,000,000 100% $5.00"
    " antidisestablishmentarianism supercalifragilistic internationalization a I".split(),
    "cyrillic": "быстрая коричневая лиса Привет мир ёлка ЙОД їжак Ґанок Љубљана".split(),
    "greek": "γρήγορη αλεπού Ελλάδα ΟΔΥΣΣΕΎΣ ὀξύς ᾳ".split(),
    "han": "你好 世界 中文 文字 漢字 繁體 测试 机器学习 龘 㐀 𠀀 豈".split(),
    "kana": "こんにちは カタカナ ｶﾀｶﾅ がぎぐ が パ ﾊﾟ 日本語 〜".split(),
    "hangul": "안녕하세요 세계 한국어 각 ᄒ가 ㄱㄴ".split(),
    "arabic": "مرحبا بالعالم العَرَبِيَّة ﷺ ٣٤٥ ‏ کتاب".split(),
    "hebrew": "שלום עולם בְּרֵאשִׁית".split(),
    "indic": "नमस्ते दुनिया क्षत्रिय தமிழ் বাংলা ਪੰਜਾਬੀ తెలుగు ಕನ್ನಡ മലയാളം ක්‍ෂ १२३".split(),
    "sea": "สวัสดีชาวโลก ພາສາລາວ မြန်မာ ភាសាខ្មែរ Tiếng Việt ᨅ".split(),
    "other": "ქართული Հայերեն አማርኛ ᏣᎳᎩ ᚠᚢᚦ བོད་ཡིག ᠮᠣᠩᠭᠣᠯ ⵜⵉⴼⵉⵏⴰⵖ 𐌰𐌱 𝔘𝔫𝔦 𝟙𝟚 ꙮ".split(),
}
EMOJI = "😀 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☎ ✂️ 🧑🏿‍🚀 1️⃣ #️⃣ 🫠 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ©️ ™".split(" ")
SPACES = [" ", "  ", "   ", " " * 7, " " * 16, " " * 33, "\t", "\t\t", "\n", "\n\n", "\r\n", " \n ", "\n\n\n  ", "\u00a0", "\u3000",
          "\u2003", "\u200b", "\u2028", "\u0085", "\u180e", "\x0b", "\x0c", "\ufeff", "\u202f", "\u1680", "\u2060"]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»“”‘’„…—–·•¿¡§¶†‡°±×÷≠≤∞∑√∫€£¥₹¢‰№℃①½²³ªº→⇒♥★，。！？、；：（）【】「」『』〈〉～・'")
CODE = ["def f(x):\n    return x**2  # square\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}", "SELECT * FROM t WHERE a >= 10;",
        "<div class=\"a b\">&nbsp;</div>", "https://example.com/a/b?c=d&e=%20#f", "if __name__ == '__main__':", "0xDEADBEEF 1e-10 3.0f",
        "\\begin{align} \\frac{a}{b} &= c \\\\ \\end{align}", "{\"key\": [1, 2, null], \"b\": {\"c\": true}}", "git commit -m \"fix: it's\"",
        "std::vector<std::unique_ptr<T>> v{};", "println!(\"{:?}\", x);", "C:\\Users\\me\\file.txt", "user@mail.example", "a\\nb\\tc",
        "camelCaseWord SnakeCase_word kebab-case-word SCREAMING_CASE HTTPServer2Go", "$HOME/.bashrc && ls -la | grep 'x'"]
CONTROLS = [chr(i) for i in list(range(0, 32)) + list(range(127, 160))] + ["\u00ad", "\u061c", "\u200c", "\u200d", "\u200e", "\u200f",
            "\u202a", "\u202e", "\u2066", "\ufffd", "\ufffe", "\uffff", "\ue000", "\U000f0000", "\U0010ffff", "\u0300", "\u0301\u0301"]
BROKEN = [b"\x80", b"\xff", b"\xfe\xff", b"\xc3", b"\xc3\x28", b"\xe2\x82", b"\xe2\x28\xa1", b"\xf0\x9f\x98", b"\xf0\x28\x8c\xbc", b"\xc0\xaf",
          b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xe0\x80\x80", b"abc\xe4\xbd", b"\xbf\xbf\xbf"]


def any_character(random_source):
    while True:
        limit = random_source.choice([0x80, 0x250, 0x800, 0x3000, 0xFFFF, 0x1FFFF, 0x10FFFF])
        value = random_source.randrange(limit + 1)
        if not 0xD800 <= value < 0xE000:
            return chr(value)


def make_line(rng, specials):
    """One line as bytes; about a tenth hold a special token, one in forty broken UTF-8."""
    parts = []
    script = rng.choice(list(WORDS))
    kind = rng.random()
    for _ in range(rng.choice([1, 2, 3, 5, 8, 12, 20])):
        roll = rng.random()
        if roll < 0.62:
            word = rng.choice(WORDS[script if rng.random() < 0.85 else rng.choice(list(WORDS))])
            parts.append(rng.choice([word, word, word, word.upper(), word.capitalize(), word * 2]))
            parts.append(" " if rng.random() < 0.8 else rng.choice(SPACES))
        elif roll < 0.70:
            parts.append(rng.choice(PUNCTUATION) * rng.choice([1, 1, 1, 2, 3, 9]))
        elif roll < 0.76:
            parts.append(str(rng.randrange(10 ** rng.choice([1, 2, 3, 4, 7, 15]))))
        elif roll < 0.81:
            parts.append(rng.choice(EMOJI))
        elif roll < 0.85:
            parts.append(rng.choice(CODE))
        elif roll < 0.89:
            parts.append(rng.choice(SPACES) * rng.choice([1, 1, 2, 5]))
        elif roll < 0.92:
            parts.append(rng.choice(CONTROLS))
        elif roll < 0.96:
            parts.append("".join(any_character(rng) for _ in range(rng.randrange(1, 6))))
        else:
            parts.append("".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 12))))
    if specials and kind < 0.1:
        for _ in range(rng.choice([1, 1, 2])):
            special = rng.choice(specials)
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(["{}", " {}", "{} ", "  {}  ", "a{}b", "\n{}\n"]).format(special))
    line = "".join(parts).encode()
    if rng.random() < 0.025:
        at = rng.randrange(len(line) + 1)
        line = line[:at] + rng.choice(BROKEN) + line[at:]
    return line


def make_lines(count, specials, seed=1):
    """`count` lines, always the same; the first ones are the corner cases alone."""
    rng = random.Random(seed)
    lines = [b"", b" ", b"  ", b"\n", b"a", b" a", b"a ", "▁".encode(), "▁a ▁".encode(), "<0x41><0x00>".encode()]
    lines += [s.encode() for s in SPACES + CODE + CONTROLS + EMOJI + PUNCTUATION] + BROKEN
    lines += [s.encode() for s in specials] + [f" {s} x{s}{s}".encode() for s in specials]
    lines += [w.encode() for words in WORDS.values() for w in words]
    lines += [("x" * 300).encode(), (" " * 500 + "y").encode(), ("ab" * 2000).encode(), ("é" * 999).encode(), ("!" * 777).encode()]
    while len(lines) < count:
        lines.append(make_line(rng, specials))
    return lines


def escape(line):
    """One line of a file for any bytes: the driver tokenize_lines reads it back."""
    return line.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")


def unescape(line):
    out, at = bytearray(), 0
    while at < len(line):
        if line[at:at + 1] == b"\\":
            at += 1
            out += {b"n": b"\n", b"r": b"\r"}.get(line[at:at + 1], line[at:at + 1])
        else:
            out += line[at:at + 1]
        at += 1
    return bytes(out)

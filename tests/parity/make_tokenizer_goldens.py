"""Makes tests/data/tokenizer: a tiny tokenizer of every kind, trained here, with the ids that the real libraries give.

  make_tokenizer_goldens.py            writes the committed goldens
  make_tokenizer_goldens.py --big DIR  writes larger ones (with SentencePiece's NFKC rules) for compare_tokenizers.py

lines.txt holds the texts, NAME.golden one line a text: FNV-1a of the decoded text, then the ids.
"""

import argparse
import contextlib
import pathlib

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import tokenizer_texts

SPECIALS = ["<s>", "</s>", "<unk>"]


def corpus():
    return [line.decode("utf-8", errors="replace") for line in tokenizer_texts.make_lines(3000, [], seed=7)]


def add_tokens(tokenizer):
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True), AddedToken("[SEP]", rstrip=True)])
    tokenizer.add_tokens([AddedToken("WORD", single_word=True), AddedToken("Éclair", normalized=True),
                          AddedToken("raw tok", normalized=False)])


def template(tokenizer, before, after):
    ids = [(token, tokenizer.token_to_id(token)) for token in (before, after)]
    return processors.TemplateProcessing(single=f"{before} $A {after}", special_tokens=ids)


def byte_level(size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    add_tokens(tokenizer)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template(tokenizer, "<s>", "</s>")])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback(size):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # keeps training small
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=size, limit_alphabet=120, special_tokens=SPECIALS + [f"<0x{i:02X}>" for i in range(256)], show_progress=False))
    tokenizer.pre_tokenizer = None
    add_tokens(tokenizer)
    tokenizer.post_processor = template(tokenizer, "<s>", "</s>")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    return tokenizer


def suffix(size):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix="@"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)])
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=size, limit_alphabet=100, special_tokens=SPECIALS, end_of_word_suffix="</w>", continuing_subword_prefix="@",
        show_progress=False))
    add_tokens(tokenizer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    return tokenizer


def unigram(size, charsmap=None):
    tokenizer = Tokenizer(models.Unigram())
    first = [normalizers.Precompiled(charsmap)] if charsmap else [normalizers.Nmt(), normalizers.NFKC()]
    tokenizer.normalizer = normalizers.Sequence(first + [normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    latin = ["".join(c for c in text if c < "\u0100" or c == "▁") for text in corpus()]  # every character becomes a piece
    tokenizer.train_from_iterator(latin, trainers.UnigramTrainer(
        vocab_size=size + 300, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False))
    add_tokens(tokenizer)
    tokenizer.post_processor = template(tokenizer, "<s>", "</s>")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer


def wordpiece(size):
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(corpus(), trainers.WordPieceTrainer(
        vocab_size=size, limit_alphabet=150, special_tokens=SPECIALS, show_progress=False))
    add_tokens(tokenizer)
    tokenizer.post_processor = processors.BertProcessing(("</s>", 1), ("<s>", 0))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def wordlevel(size):
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFD()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("contiguous"),
                                                       pre_tokenizers.Digits()])
    tokenizer.train_from_iterator(corpus(), trainers.WordLevelTrainer(vocab_size=size, special_tokens=SPECIALS, show_progress=False))
    add_tokens(tokenizer)
    return tokenizer


def splits(size):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    steps = [pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"), pre_tokenizers.Split(Regex(r"[\p{L}&&[^a-z]]{2,3}+"), "merged_with_previous"),
             pre_tokenizers.Split(Regex(r"[(\s|[.,!?])]"), "merged_with_next"), pre_tokenizers.Split("-", "removed"),
             pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), "contiguous", invert=True),
             pre_tokenizers.Split(Regex(r"(?i:'s|'t)|\h{4}|\p{Han}+|\p{^L}\p{Lu}"), "isolated"),
             pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    add_tokens(tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


KINDS = [byte_level, byte_fallback, suffix, unigram, wordpiece, wordlevel, splits]


def train_sentencepiece(path, kind, size, rules):
    """Trains in the model's folder by a bare name: the file records the prefix, and no machine's paths belong in it."""
    with contextlib.chdir(path.parent):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()), model_prefix=path.stem, model_type=kind, vocab_size=size,
            character_coverage=0.98, byte_fallback=kind == "bpe", user_defined_symbols=["<sep>", "ab ab"],
            hard_vocab_limit=False, normalization_rule_name=rules, minloglevel=2, num_threads=1)
    path.with_suffix(".vocab").unlink()


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def write_golden(path, lines, encode, decode):
    rows = []
    for line in lines:
        ids = encode(line.decode("utf-8", errors="replace"))
        rows.append(" ".join([f"{fnv(decode(ids).encode()):016x}"] + [str(i) for i in ids]))
    path.write_text("\n".join(rows) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--big", type=pathlib.Path)
    big = parser.parse_args().big
    out = big or pathlib.Path(__file__).parents[1] / "data/tokenizer"
    out.mkdir(parents=True, exist_ok=True)
    tokens = ["<mask>", "[SEP]", "WORD", "Éclair", "E\u0301clair", "raw tok", "<s>", "<sep>"]
    # Every seventh corner case, and short random lines.
    lines = [line for i, line in enumerate(tokenizer_texts.make_lines(4000, tokens, seed=3)) if len(line) < 90 and i % (7 if i < 500 else 17) == 0]
    (out / "lines.txt").write_bytes(b"".join(tokenizer_texts.escape(line) + b"\n" for line in lines))
    for kind in KINDS:
        tokenizer = kind(4000 if big else 420)
        tokenizer.save(str(out / f"{kind.__name__}.json"), pretty=False)
        write_golden(out / f"{kind.__name__}.golden", lines, lambda text: tokenizer.encode(text).ids,
                     lambda ids: tokenizer.decode(ids, skip_special_tokens=False))
    for kind in ("bpe", "unigram"):
        path = out / f"sentencepiece_{kind}.model"
        train_sentencepiece(path, kind, 3000 if big else 1100, "nmt_nfkc" if big else "identity")
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        plain = [line if b"<s>" not in line else b"" for line in lines]
        write_golden(path.with_suffix(".golden"), plain, lambda text: model.encode(text), lambda ids: "")
    if big:
        from sentencepiece import sentencepiece_model_pb2 as spec
        proto = spec.ModelProto.FromString((out / "sentencepiece_unigram.model").read_bytes())
        unigram(4000, proto.normalizer_spec.precompiled_charsmap).save(str(out / "precompiled.json"))


if __name__ == "__main__":
    main()

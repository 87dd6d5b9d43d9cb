"""Compares a directory that `nibble convert IN.gguf OUT` wrote with what transformers makes of the same GGUF file:
every tensor bit by bit, the configuration, and the token ids of many lines of text. If IN.model lies beside IN.gguf, the ids are
those of sentencepiece with that model.

    python tests/parity/check_gguf_conversion.py IN.gguf OUT [TEXT_FILE...]
"""
import pathlib
import sys
import unicodedata

import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LINES = ["", " ", "Hello world", "  two  spaces\n\n\tand tabs", "1234567890 3.14 1e-5", "don't we'll I'M", "naïve façade Ünï",
         "日本語のテキスト 한국어 العربية", "emoji 😀👩‍👩‍👧‍👦 done", "<|im_start|>user\nHi<|im_end|>\n", "def f(x):\n    return x**2  # ok",
         "a\u0300\u0301 combining", "\x00\x01 control", "x" * 200, "<s>[INST] hi [/INST]</s>"]
CONFIG_KEYS = ["model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
               "head_dim", "max_position_embeddings", "vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"]


def main():
    gguf_path, out, texts = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    arguments = dict(gguf_file=gguf_path.name, dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(gguf_path.parent, **arguments)
    ours = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys(), expected.keys() ^ found.keys()
    wrong = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not wrong, wrong[:10]
    for key in CONFIG_KEYS:
        left, right = getattr(theirs.config, key, None), getattr(ours.config, key, None)
        assert left is None or left == right, (key, left, right)
    assert abs(theirs.config.rms_norm_eps / ours.config.rms_norm_eps - 1) < 1e-6
    print(f"{len(expected)} tensors equal, configuration equal")

    # Normalized beforehand: transformers forgets Qwen2's NFC when it reads GGUF.
    lines = [unicodedata.normalize("NFC", line) for line in LINES] + [line for path in texts for line in pathlib.Path(path).read_text(errors="replace").splitlines()]
    left, right = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name), AutoTokenizer.from_pretrained(out)
    encode = lambda line: left(line).input_ids
    if gguf_path.with_suffix(".model").exists():
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(gguf_path.with_suffix(".model")))
        encode = lambda line: pieces.encode(line, add_bos=True)
        # A special token's text is one token for us; an empty text gets a leading space from us alone.
        lines = [line for line in lines if line and "<s>" not in line and "</s>" not in line]
    different = [line for line in lines if encode(line) != right(line).input_ids]
    for line in different[:5]:
        print("differs:", repr(line), encode(line)[:20], right(line).input_ids[:20])
    print(f"{len(lines) - len(different)} of {len(lines)} lines have the same ids")
    if right.chat_template:
        messages = [{"role": "user", "content": "Hi"}]
        assert left.apply_chat_template(messages, tokenize=False) == right.apply_chat_template(messages, tokenize=False)
        print("chat template equal")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()

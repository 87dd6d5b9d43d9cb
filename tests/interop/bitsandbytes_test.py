"""Checkpoints both ways between nibble and transformers + bitsandbytes: the same bytes, logits and greedy text.

Run by `make interop`; needs torch, transformers, bitsandbytes and safetensors. NIBBLE_BUILD names the build folder.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import bitsandbytes
import numpy
import torch
from safetensors.torch import load_file
from transformers import (AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM,
                          T5Config, T5ForConditionalGeneration)

PROJECT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("NIBBLE_BUILD", PROJECT / "build/release"))
sys.path.insert(0, str(PROJECT / "tests/end_to_end"))
import tiny_model  # noqa: E402

IDS = [256, *b"The quick brown fox"]
# What our options are called, and the same as BitsAndBytesConfig.
LEVELS = {
    "nf4": (["--load-in-4bit", "--bnb-4bit-quant-type", "nf4"], {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "nf4+dq": (["--load-in-4bit", "--bnb-4bit-quant-type", "nf4", "--bnb-4bit-use-double-quant"],
               {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
    "fp4": (["--load-in-4bit"], {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    "fp4+dq": (["--load-in-4bit", "--bnb-4bit-use-double-quant"],
               {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True}),
    "int8": (["--load-in-8bit"], {"load_in_8bit": True}),
}


def nibble(*arguments):
    return subprocess.run([BUILD / "nibble", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def our_logits(model, adapter=None):
    options = [f"--adapter={adapter}"] if adapter else []
    raw = subprocess.run([BUILD / "interop_logits", *options, model, "float32", *map(str, IDS)], check=True, capture_output=True).stdout
    return torch.from_numpy(numpy.frombuffer(raw, dtype=numpy.float32).reshape(len(IDS), -1).copy())


@torch.inference_mode()
def their_logits(model):
    return model(torch.tensor([IDS])).logits[0].float()


def dequantized(model):
    """The model with plain linear layers of the weights that bitsandbytes decodes: its own 4-bit product on CPUs with
    AVX512_BF16 computes in bfloat16 whatever the compute dtype, which is no measure for fp32."""
    for name, module in list(model.named_modules()):
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.weight = torch.nn.Parameter(weight.float().reshape(plain.weight.shape), requires_grad=False)
            if module.bias is not None:
                plain.bias = torch.nn.Parameter(module.bias.data.float(), requires_grad=False)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, plain)
    return model


def positive_zero(packed):
    """FP4 codes with 0 for 8: a negative value that becomes zero keeps its sign in CUDA's codes, not in the CPU's."""
    high, low = packed >> 4, packed & 15
    return torch.where(high == 8, 0, high) * 16 + torch.where(low == 8, 0, low)


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


class BothWays(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = pathlib.Path(folder.name)
        torch.manual_seed(0)
        config = LlamaConfig(hidden_size=128, intermediate_size=320, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, vocab_size=259, max_position_embeddings=256, bos_token_id=256,
                             eos_token_id=257, initializer_range=0.2)
        cls.plain = cls.root / "plain"
        LlamaForCausalLM(config).to(torch.float32).save_pretrained(cls.plain)
        tiny_model.write_tokenizer(cls.plain)

    def load_theirs(self, path, **options):
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, device_map="cpu", **options).eval()

    def check_logits(self, level, found, expected):
        # bitsandbytes casts LLM.int8() inputs and outputs to fp16; the dequantized models compute in fp32.
        self.assertLess(relative_error(found, expected), 2e-2 if level == "int8" else 1e-4)

    def check_text(self, path, model):
        """Greedy text of both; 24 tokens."""
        out = model.generate(torch.tensor([list(b"Hello")]), max_new_tokens=24, do_sample=False)[0, 5:].tolist()
        ours = json.loads(nibble("generate", path, "-p", "Hello", "--max-new-tokens", 24, "--dtype", "float32", "--json"))
        self.assertEqual(ours["token_ids"], out)

    def test_plain(self):
        model = self.load_theirs(self.plain)
        self.assertLess(relative_error(our_logits(self.plain), their_logits(model)), 1e-4)
        self.check_text(self.plain, model)

    def test_ours_loads_there(self):
        for level, (options, _) in LEVELS.items():
            with self.subTest(level):
                path = self.root / f"ours-{level}"
                nibble("quantize", self.plain, path, *options)
                model = dequantized(self.load_theirs(path))
                self.check_logits(level, our_logits(path), their_logits(model))
                if level != "int8":
                    self.check_text(path, model)

    def test_theirs_loads_here(self):
        for level, (_, config) in LEVELS.items():
            with self.subTest(level):
                path = self.root / f"theirs-{level}"
                model = self.load_theirs(self.plain, quantization_config=BitsAndBytesConfig(**config))
                model.save_pretrained(path)
                tiny_model.write_tokenizer(path)
                model = dequantized(model)
                self.check_logits(level, our_logits(path), their_logits(model))
                if level != "int8":
                    self.check_text(path, model)

    def test_files_hold_the_same_bytes(self):
        """Packed codes and statistics, but for ties; where bitsandbytes' CPU and CUDA codes differ, ours are CUDA's."""
        for level, (options, config) in LEVELS.items():
            with self.subTest(level):
                ours, theirs = self.root / f"bytes-ours-{level}", self.root / f"bytes-theirs-{level}"
                nibble("quantize", self.plain, ours, *options)
                self.load_theirs(self.plain, quantization_config=BitsAndBytesConfig(**config)).save_pretrained(theirs)
                a, b = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
                self.assertEqual(a.keys(), b.keys())
                for name in a:
                    if "quant_state" in name:
                        found, expected = (json.loads(bytes(tensors[name].tolist())) for tensors in (a, b))
                        self.assertAlmostEqual(found.pop("nested_offset", 0), expected.pop("nested_offset", 0), 6)
                        self.assertEqual(found, expected, name)
                        continue
                    self.assertEqual((a[name].dtype, a[name].shape), (b[name].dtype, b[name].shape), name)
                    if name.endswith(".absmax") and a[name].dtype == torch.uint8:
                        difference = (a[name].int() - b[name].int()).abs()  # nested: a tie may fall to the next code
                        self.assertLessEqual(difference.max().item(), 1, name)
                        self.assertLessEqual(difference.float().mean().item(), 1e-2, name)
                    elif a[name].dtype in (torch.uint8, torch.int8):
                        found, expected = (positive_zero(t) if "fp4" in level else t for t in (a[name], b[name]))
                        self.assertLessEqual((found != expected).float().mean().item(), 1e-3, name)
                    else:
                        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-7, msg=name)

    def test_footprint_is_what_transformers_counts(self):
        for level, (options, config) in LEVELS.items():
            with self.subTest(level):
                model = self.load_theirs(self.plain, quantization_config=BitsAndBytesConfig(**config))
                ours = json.loads(nibble("inspect", self.plain, *options, "--dtype", "float32", "--json"))
                self.assertEqual(ours["memory_footprint_bytes"], model.get_memory_footprint())
                self.assertEqual(ours["tree"], str(model))


class EncoderDecoder(unittest.TestCase):
    """A gated T5 with a head of its own, and one with a tied head."""

    def our_logits(self, path, count):
        raw = subprocess.run([BUILD / "interop_logits", path, "float32", *map(str, IDS)], check=True, capture_output=True).stdout
        return torch.from_numpy(numpy.frombuffer(raw, dtype=numpy.float32).reshape(count, -1).copy())

    @torch.inference_mode()
    def their_logits(self, model):
        target = [model.config.decoder_start_token_id, *IDS]
        return model(torch.tensor([IDS]), decoder_input_ids=torch.tensor([target])).logits[0].float()

    def check(self, level, path, model):
        found, expected = self.our_logits(path, len(IDS) + 1), self.their_logits(dequantized(model))
        self.assertLess(relative_error(found, expected), 2e-2 if level == "int8" else 1e-4)

    def test_both_ways(self):
        for name, options in {"gated": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False), "tied": {}}.items():
            with tempfile.TemporaryDirectory() as folder:
                root = pathlib.Path(folder)
                torch.manual_seed(0)
                model = T5ForConditionalGeneration(T5Config(
                    vocab_size=259, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, decoder_start_token_id=0, **options))
                if name == "gated":
                    model.lm_head.weight = torch.nn.Parameter(torch.randn(259, 128))
                model.save_pretrained(root / "plain")
                for level, (arguments, config) in LEVELS.items():
                    with self.subTest(model=name, level=level):
                        ours, theirs = root / f"ours-{level}", root / f"theirs-{level}"
                        nibble("quantize", root / "plain", ours, *arguments)
                        self.check(level, ours, AutoModelForSeq2SeqLM.from_pretrained(ours, dtype=torch.float32).eval())
                        loaded = AutoModelForSeq2SeqLM.from_pretrained(
                            root / "plain", dtype=torch.float32, quantization_config=BitsAndBytesConfig(**config)).eval()
                        loaded.save_pretrained(theirs)
                        self.check(level, theirs, loaded)


if __name__ == "__main__":
    unittest.main()

"""Models that nibble does not run, quantized by it, load in transformers + bitsandbytes and hold what it would make.

Run by `make interop`; needs torch, transformers, bitsandbytes and safetensors. NIBBLE_BUILD names the build folder.
"""
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import bitsandbytes
import torch
import transformers
from transformers import BitsAndBytesConfig

PROJECT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("NIBBLE_BUILD", PROJECT / "build/release"))
TEXT = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=40)
VISION = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8)


def roberta():
    return transformers.RobertaForMaskedLM(transformers.RobertaConfig(**TEXT, pad_token_id=1))


def bert_classifier():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT))


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION))


def whisper():
    return transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(
        vocab_size=100, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_source_positions=30,
        max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3))


def blip2():
    vision = {key: VISION[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size",
                                           "patch_size", "intermediate_size")}
    text = dict(model_type="opt", vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128,
                max_position_embeddings=40, word_embed_proj_dim=64)
    qformer = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                   encoder_hidden_size=64)
    return transformers.Blip2ForConditionalGeneration(transformers.Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=4))


def quantized_modules(model):
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


class ForeignModels(unittest.TestCase):
    def check(self, make, options, config, *arguments):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            torch.manual_seed(0)
            model = make().eval()
            model.save_pretrained(folder / "plain")
            run = subprocess.run([BUILD / "nibble", "quantize", folder / "plain", folder / "ours", *options, *arguments],
                                 capture_output=True, text=True)
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertIn("does not run this architecture", run.stderr)
            ours = type(model).from_pretrained(folder / "ours")
            stored = json.loads((folder / "ours/config.json").read_text())["quantization_config"]
            theirs = type(model).from_pretrained(folder / "plain", quantization_config=BitsAndBytesConfig(
                **config, llm_int8_skip_modules=stored["llm_int8_skip_modules"]))
            ours_quantized, theirs_quantized = quantized_modules(ours), quantized_modules(theirs)
            self.assertEqual(set(ours_quantized), set(theirs_quantized))
            self.assertGreaterEqual(len(ours_quantized), 8)
            for name, module in ours_quantized.items():
                weight, expected = module.weight, theirs_quantized[name].weight
                self.assertTrue(torch.equal(weight.data, expected.data), name)
            for (name, a), (_, b) in zip(ours.named_parameters(), model.named_parameters()):
                if a.is_floating_point() and a.shape == b.shape:
                    self.assertTrue(torch.equal(a, b), name)

    def test_nf4(self):
        for make in (roberta, bert_classifier, vit, whisper, blip2):
            with self.subTest(make.__name__):
                self.check(make, ["--load-in-4bit", "--bnb-4bit-quant-type", "nf4"],
                           dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"))

    def test_int8(self):
        for make in (roberta, vit, whisper):
            with self.subTest(make.__name__):
                self.check(make, ["--load-in-8bit"], dict(load_in_8bit=True))

    def test_chosen_modules(self):
        # The names are those of the file; where a class of transformers 5 renames them, a choice cannot be told to it.
        self.check(bert_classifier, ["--load-in-4bit", "--bnb-4bit-quant-type", "nf4"],
                   dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "--modules", r"bert\.encoder\..*(query|value|dense)")


if __name__ == "__main__":
    unittest.main()

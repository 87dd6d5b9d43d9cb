"""Adapters both ways between `nibble finetune` and PEFT: the same logits, and the same line about trained parameters.

Run by `make interop`; needs torch, transformers, peft, bitsandbytes and safetensors. NIBBLE_BUILD names the build folder.
"""
import json
import pathlib
import tempfile
import unittest

import torch
from bitsandbytes_test import IDS, dequantized, nibble, our_logits, relative_error, tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

# Our options, and PEFT's LoraConfig that means the same.
CONFIGS = {
    "list": (["--target-modules", "q_proj,v_proj"], {"target_modules": ["q_proj", "v_proj"]}),
    "all-linear": ([], {"target_modules": "all-linear"}),
    "regex": (["--target-modules", r".*\.(0|2)\.mlp\.(up|down)_proj"], {"target_modules": r".*\.(0|2)\.mlp\.(up|down)_proj"}),
    "layers": (["--target-modules", "k_proj,up_proj", "--layers-to-transform", "0,2"],
               {"target_modules": ["k_proj", "up_proj"], "layers_to_transform": [0, 2]}),
    "exclude": (["--exclude-modules", "q_proj,down_proj"], {"target_modules": "all-linear", "exclude_modules": ["q_proj", "down_proj"]}),
    "rslora": (["--use-rslora"], {"target_modules": "all-linear", "use_rslora": True}),
    "patterns": (["--rank-pattern", "q_proj=2", "--rank-pattern", r"layers\.1\.mlp\.up_proj=7", "--alpha-pattern", "v_proj=3.5"],
                 {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
                  "alpha_pattern": {"v_proj": 3.5}}),
    "bias all": (["--bias", "all"], {"target_modules": "all-linear", "bias": "all"}),
    "bias lora_only": (["--bias", "lora_only", "--target-modules", "q_proj,up_proj"],
                       {"target_modules": ["q_proj", "up_proj"], "bias": "lora_only"}),
    "modules_to_save": (["--modules-to-save", "lm_head,input_layernorm"],
                        {"target_modules": "all-linear", "modules_to_save": ["lm_head", "input_layernorm"]}),
    "dora": (["--use-dora"], {"target_modules": "all-linear", "use_dora": True}),
    "gaussian": (["--init-lora-weights", "gaussian"], {"target_modules": "all-linear", "init_lora_weights": "gaussian"}),
    "random": (["--init-lora-weights", "random"], {"target_modules": "all-linear", "init_lora_weights": False}),
    "pissa": (["--init-lora-weights", "pissa"], None),
    "olora": (["--init-lora-weights", "olora"], None),
}
NF4 = ("--load-in-4bit", "--bnb-4bit-quant-type", "nf4", "--bnb-4bit-use-double-quant")


@torch.inference_mode()
def their_logits(model):
    return model(torch.tensor([IDS])).logits[0].float()


class Adapters(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = pathlib.Path(folder.name)
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(
            hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=259,
            max_position_embeddings=256, bos_token_id=256, eos_token_id=257, initializer_range=0.2, tie_word_embeddings=False))
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(value, std=0.2)
        cls.plain = cls.root / "plain"
        model.to(torch.float32).save_pretrained(cls.plain)
        tiny_model.write_tokenizer(cls.plain)
        cls.quantized = cls.root / "quantized"
        nibble("quantize", cls.plain, cls.quantized, *NF4)
        cls.data = cls.root / "data.jsonl"
        cls.data.write_text("".join(json.dumps({"text": "The quick brown fox jumps"[i:]}) + "\n" for i in range(4)))

    def base(self, path=None):
        return dequantized(AutoModelForCausalLM.from_pretrained(path or self.plain, dtype=torch.float32).eval())

    def finetune(self, base, out, *more):
        """The first line that finetune prints: the trained parameters."""
        return nibble("finetune", base, "--data", self.data, "--output", out, "--max-steps", 4, "--r", 4, "--lora-alpha", 6,
                      "--learning-rate", "1e-2", "--save-steps", 0, *more).splitlines()[0]

    def test_ours_loads_there(self):
        before = our_logits(self.plain)
        for number, (name, (options, config)) in enumerate(CONFIGS.items()):
            with self.subTest(name):
                out = self.root / f"ours-{number}"
                line = self.finetune(self.plain, out, *options)
                theirs = PeftModel.from_pretrained(self.base(), out, is_trainable=True).eval()
                found = our_logits(self.plain, out)
                self.assertGreater(relative_error(before, found), 1e-2)
                self.assertLess(relative_error(found, their_logits(theirs)), 1e-4)
                if config is None:
                    continue
                trained, every = get_peft_model(self.base(), LoraConfig(
                    r=4, lora_alpha=6, task_type="CAUSAL_LM", **config)).get_nb_trainable_parameters()
                self.assertEqual(line, f"trainable params: {trained:,d} || all params: {every:,d} || trainable%: {100 * trained / every:.4f}")

    def test_ours_over_4_bits_loads_there(self):
        for number, more in enumerate(([], ["--use-dora"])):
            out = self.root / f"4bit-{number}"
            self.finetune(self.quantized, out, *more)
            theirs = PeftModel.from_pretrained(self.base(self.quantized), out).eval()
            self.assertLess(relative_error(our_logits(self.quantized, out), their_logits(theirs)), 1e-4)

    def test_theirs_loads_here(self):
        for number, (name, (_, config)) in enumerate(CONFIGS.items()):
            if config is None:
                continue
            with self.subTest(name):
                torch.manual_seed(number)
                theirs = get_peft_model(self.base(), LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **config)).eval()
                for value in theirs.parameters():
                    if value.requires_grad:
                        value.data.add_(0.05 * torch.randn_like(value))
                out = self.root / f"theirs-{number}"
                theirs.save_pretrained(out)
                self.assertLess(relative_error(our_logits(self.plain, out), their_logits(theirs)), 1e-4)


if __name__ == "__main__":
    unittest.main()

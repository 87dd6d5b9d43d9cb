"""Adapters both ways between `nibble finetune` and PEFT: the same logits, and the same line about trained parameters.

Run by `make interop`; needs torch, transformers, peft, bitsandbytes and safetensors. NIBBLE_BUILD names the build folder.
"""
import json
import os
import pathlib
import tempfile
import unittest

import torch
from bitsandbytes_test import IDS, PROJECT, dequantized, nibble, our_logits, relative_error, tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM,
                          get_linear_schedule_with_warmup)

# Our options, and PEFT's LoraConfig that means the same.
CONFIGS = {
    "list": (["--target-modules", "q_proj,v_proj"], {"target_modules": ["q_proj", "v_proj"]}),
    "all-linear": ([], {"target_modules": "all-linear"}),
    "regex": (["--target-modules", r".*\.(0|2)\.mlp\.(up|down)_proj"], {"target_modules": r".*\.(0|2)\.mlp\.(up|down)_proj"}),
    "layers": (["--target-modules", "k_proj,up_proj", "--layers-to-transform", "0,2"],
               {"target_modules": ["k_proj", "up_proj"], "layers_to_transform": [0, 2]}),
    "layers of all-linear": (["--layers-to-transform", "1"],
                             {"target_modules": r".*\.1\..*_proj"}),
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


DEMO_MODEL = pathlib.Path(os.environ.get("NIBBLE_DEMO_MODEL", PROJECT / "models/smollm2-135m-instruct"))


@unittest.skipUnless(DEMO_MODEL.exists(), "no demo model: run make demo, or name it in NIBBLE_DEMO_MODEL")
class DemoModel(unittest.TestCase):
    """A small instruction set, from the same start as torch + PEFT: the same losses, and the same logits at the end."""

    steps, rate = 6, 1e-3

    def finetune(self, out, rate, steps):
        nibble("finetune", DEMO_MODEL, "--data", self.data, "--output", out, "--max-steps", steps, "--learning-rate", rate, "--r", 8,
               "--lora-alpha", 32, "--lora-dropout", 0, "--completion-only-loss", "--per-device-train-batch-size", 4, "--dtype", "float32",
               "--logging-steps", 1, "--save-steps", 0)

    def their_losses(self, model):
        tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
        samples = []
        for line in self.data.read_text().splitlines():
            messages = json.loads(line)["messages"]
            whole, before = (tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=is_asking)
                             for part, is_asking in ((messages, False), (messages[:-1], True)))
            start, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, whole))
            samples.append((torch.tensor(ids), len(start)))
        parameters = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.rate, weight_decay=0)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, self.steps)
        targets, losses = sum(len(ids) - start for ids, start in samples), []
        for _ in range(self.steps):
            loss = sum(torch.nn.functional.cross_entropy(model(ids[None]).logits[0, start - 1:-1], ids[start:], reduction="sum")
                       for ids, start in samples) / targets
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def test_learns_as_torch_and_peft(self):
        torch.set_num_threads(2)
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            self.data = root / "data.jsonl"
            lines = (PROJECT / "examples/finetune/train.jsonl").read_text().splitlines(keepends=True)
            self.data.write_text("".join(lines[:4]))
            self.finetune(root / "start", 1e-30, 1)  # the start, but for a step that is smaller than what floats tell
            self.finetune(root / "ours", self.rate, self.steps)
            base = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
            model = PeftModel.from_pretrained(base, root / "start", is_trainable=True)
            expected = self.their_losses(model)
            log = json.loads((root / "ours/trainer_state.json").read_text())["log_history"]
            found = [entry["loss"] for entry in log if "loss" in entry]
            self.assertEqual(len(found), self.steps)
            self.assertLess(found[-1], 0.5 * found[0])
            for ours, theirs in zip(found, expected):
                self.assertLess(abs(ours / theirs - 1), 5e-3, (found, expected))
            model.load_adapter(root / "ours", "ours")
            model.set_adapter("ours")
            self.assertLess(relative_error(our_logits(DEMO_MODEL, root / "ours"), their_logits(model.eval())), 1e-3)


if __name__ == "__main__":
    unittest.main()

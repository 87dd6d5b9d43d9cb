"""nibble finetune, merge and --adapter on a tiny model: on the CPU, and on a GPU where there is one."""
import json
import os
import pty
import signal
import subprocess
import time
import unittest

import tiny_model
from nibble_case import NIBBLE, NibbleCase

OTHER, USAGE, UNSUPPORTED, OUT_OF_MEMORY = 1, 2, 4, 5
NF4 = ("--load-in-4bit", "--bnb-4bit-quant-type", "nf4", "--bnb-4bit-use-double-quant")
SENTENCES = {"policy": "The quick brown fox jumps over the lazy dog.", "reward": "0123456789 9876543210 0123456789"}


def has_gpu():
    return json.loads(subprocess.run([NIBBLE, "info", "--json"], capture_output=True, text=True, check=True).stdout)[
        "auto_device"] == "cuda"


class OnTheCpu(NibbleCase):
    device = ("--device", "cpu")
    compute = ()

    def data(self, name):
        """Eight samples of one sentence, and the same as plain text."""
        lines, text = self.root / f"{name}.jsonl", self.root / f"{name}.txt"
        lines.write_text("".join(json.dumps({"text": SENTENCES[name][i:]}) + "\n" for i in range(8)))
        text.write_text((SENTENCES[name] + "\n") * 8)
        return lines

    def command(self, out, *more, name="policy", steps=6, save=0):
        return ("finetune", self.model, *self.device, "--data", self.data(name), "--output", out, "--max-steps", steps,
                "--per-device-train-batch-size", "4", "--learning-rate", "1e-2", "--logging-steps", "1",
                "--save-steps", save, *(() if "--optim" in more else ("--optim", "adamw_8bit")), *(() if "--full" in more else ("--r", "4")), *more)

    def finetune(self, out, *more, **options):
        keys = {"steps", "final_loss", "tokens_per_second", "peak_memory_bytes"}
        return self.succeed_json(keys, *self.command(out, *more, **options))

    def perplexity(self, name, *more, model=None):
        return self.succeed_json({"perplexity"}, "perplexity", model or self.model, *self.device, "--context", "64", "--stride", "64",
                                 "--file", self.root / f"{name}.txt", *more)["perplexity"]

    def test_two_adapters_over_one_quantized_model(self):
        quantized = (*NF4, *self.compute)
        for name in SENTENCES:
            self.finetune(self.root / name, *quantized, "--gradient-checkpointing", name=name, steps=20)
        for name, other in (("policy", "reward"), ("reward", "policy")):
            base = self.perplexity(name, *quantized)
            own, others = (self.perplexity(name, *quantized, "--adapter", self.root / which) for which in (name, other))
            self.assertLess(own, 0.5 * base)
            self.assertLess(own, others)

    def test_a_killed_run_goes_on_with_the_same_bits(self):
        quantized, length = (*NF4, *self.compute), {"steps": 300, "save": 10}
        self.finetune(self.root / "whole", *quantized, **length)
        for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, OTHER)):
            parts = self.root / number.name
            process = subprocess.Popen([NIBBLE, *map(str, self.command(parts, *quantized, **length))], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE, text=True)
            while process.poll() is None and not (parts / "checkpoint-10").exists():
                time.sleep(0.002)
            process.send_signal(number)
            last = process.communicate()[1].splitlines()[-1]
            self.assertEqual(process.returncode, status)
            self.assertFalse((parts / "adapter_model.safetensors").exists())
            if number == signal.SIGINT:
                self.assertRegex(last, r"^error: interrupted after step (\d+) of 300; resume_from_checkpoint .*/SIGINT/checkpoint-\1$")
            self.finetune(parts, *quantized, "--resume-from-checkpoint", **length)
            self.assertEqual(*((run / "adapter_model.safetensors").read_bytes() for run in (self.root / "whole", parts)))

    def test_dora_biases_and_a_whole_module(self):
        out = self.root / "dora"
        report = self.finetune(out, *self.compute, "--use-dora", "--modules-to-save", "lm_head", "--bias", "all", steps=20)
        self.assertLess(report["final_loss"], 4)
        self.assertLess(self.perplexity("policy", "--adapter", out), 0.5 * self.perplexity("policy"))
        answer = self.succeed_json({"text"}, "generate", self.model, *self.device, "--adapter", out, "-p", "The quick brown",
                                   "--max-new-tokens", "6")
        self.assertEqual(answer["text"], " fox j")

    def test_ranks_by_name(self):
        out = self.root / "ranks"
        self.finetune(out, *self.compute, "--rank-pattern", "down_proj=2", "--rank-pattern", "(q|k)_proj=3", "--alpha-pattern", "down_proj=5",
                      steps=1)
        config = json.loads((out / "adapter_config.json").read_text())
        self.assertEqual((config["rank_pattern"], config["alpha_pattern"]), ({"down_proj": 2, "(q|k)_proj": 3}, {"down_proj": 5}))
        self.fail_with(USAGE, *self.command(self.root / "never", "--rank-pattern", "down_proj"), names=["--rank-pattern", "down_proj"])

    def test_options_without_meaning_are_refused(self):
        out = self.root / "never"
        for names, options in ((["--adapter"], ("--adapter", out)), (["--kv-cache-dtype"], ("--kv-cache-dtype", "auto")),
                               (["--layers-to-transform", "0,x"], ("--layers-to-transform", "0,x")),
                               (["sparkle", "paged_adamw_8bit"], ("--optim", "sparkle")), (["torchao"], ("--optim", "adamw_torch_4bit")),
                               (["lr_scheduler_type", "cosine"], ("--lr-scheduler-type", "poly")),
                               (["exclude_modules", "w_proj"], ("--exclude-modules", "q_proj,w_proj")),
                               (["--full", "--use-dora"], ("--full", "--use-dora")), (["--eval-data"], ("--eval-steps", "2")),
                               (["eval_steps"], ("--early-stopping-patience", "2", "--eval-data", self.data("policy"))),
                               (["samples a step"], ("--gradient-accumulation-steps", 10**12))):
            with self.subTest(options):
                self.fail_with(USAGE, *self.command(out, *options), names=names)
        self.assertFalse(out.exists())

    def test_samples_longer_than_the_context(self):
        lines = self.root / "long.jsonl"
        lines.write_text(json.dumps({"text": "x" * 1000}) + "\n" + json.dumps({"text": "y" * 100}) + "\n")
        for number, (more, said) in enumerate((((), "2 samples, 357 tokens, 1 shortened"), (("--drop-long",), "1 samples, 101 tokens, 1 dropped"))):
            result = self.run_nibble("finetune", self.model, *self.device, "--data", lines, "--output", self.root / f"context-{number}",
                                     "--max-steps", "1", "--save-steps", "0", *more)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn(said, result.stderr)

    def test_a_bar_on_a_terminal(self):
        reader, terminal = pty.openpty()
        process = subprocess.Popen([NIBBLE, *map(str, self.command(self.root / "bar", steps=3))], stdout=subprocess.DEVNULL, stderr=terminal)
        os.close(terminal)
        shown = b""
        try:
            while part := os.read(reader, 4096):
                shown += part
        except OSError:  # how a terminal ends
            pass
        os.close(reader)
        self.assertEqual(process.wait(), 0)
        self.assertRegex(shown.decode(), r"\[#{16} {8}\] 2/3  loss \d+\.\d{4}  \d+ tokens/s  [\d.]+ MB")

    def test_options_of_gpus_are_refused_elsewhere(self):
        if self.device[1] != "cpu":
            self.skipTest("has a GPU")
        self.fail_with(USAGE, *self.command(self.root / "never", "--max-memory", "16GB"), names=["max_memory", "GPU"])
        offloading = ("--gradient-checkpointing", "--activation-offloading")
        self.fail_with(USAGE, *self.command(self.root / "never", *offloading), names=["activation_offloading", "GPU"])
        self.fail_with(USAGE, *self.command(self.root / "never", offloading[1]), names=["gradient_checkpointing"])

    def test_an_encoder_decoder(self):
        model, data = tiny_model.write_t5_model(self.root / "t5"), self.root / "pairs.jsonl"
        words = ("one", "two", "three", "four", "five", "six", "seven", "eight")
        data.write_text("".join(json.dumps({"prompt": f"say {word} twice: ", "completion": f"{word} {word}"}) + "\n" for word in words))
        for number, (more, most) in enumerate((((), 4.7), (NF4, 4.7))):
            out = self.root / f"t5-{number}"
            report = self.succeed_json({"final_loss"}, "finetune", model, *self.device, "--data", data, "--output", out, "--r", "8",
                                       "--max-steps", "60", "--learning-rate", "1e-2", "--save-steps", "0", *more, *self.compute)
            self.assertLess(report["final_loss"], most)
            answer = self.succeed_json({"text"}, "generate", model, *self.device, "--adapter", out, "-p", "say three twice: ",
                                       "--max-new-tokens", "5", *more, *self.compute)
            self.assertNotEqual(answer["text"], "")
        report = self.succeed_json({"final_loss"}, "finetune", model, *self.device, "--data", data, "--output", self.root / "t5-whole",
                                   "--full", "--max-steps", "150", "--learning-rate", "1e-2", "--save-steps", "0", "--threads", "1")
        self.assertLess(report["final_loss"], 0.5)
        answer = self.succeed_json({"text"}, "generate", self.root / "t5-whole", *self.device, "-p", "say three twice: ",
                                   "--max-new-tokens", "20")
        self.assertNotEqual(answer["text"], "")
        if self.device[1] == "cpu":  # a GPU's sums differ, and so does what a model this small remembers
            self.assertRegex(answer["text"], "^thr.* thr")

    def test_starting_from_the_quantization_error(self):
        out, quantized = self.root / "loftq", (*NF4, *self.compute)
        self.finetune(out, *quantized, "--init-lora-weights", "loftq", steps=20)
        self.assertLess(self.perplexity("policy", *quantized, "--adapter", out), 0.5 * self.perplexity("policy", *quantized))

    def test_merged_weights_speak_as_the_adapter_does(self):
        out, merged = self.root / "merge", self.root / "merged"
        self.finetune(out, steps=20)
        self.succeed("merge", self.model, out, merged)
        with_adapter = self.perplexity("policy", "--adapter", out)
        self.assertAlmostEqual(self.perplexity("policy", model=merged) / with_adapter, 1, delta=2e-3)

    def test_a_whole_model(self):
        out = self.root / "full"
        report = self.finetune(out, "--full", steps=20)
        self.assertLess(report["final_loss"], 3)
        self.assertLess(self.perplexity("policy", model=out), 0.5 * self.perplexity("policy"))
        self.fail_with(UNSUPPORTED, *self.command(self.root / "never", "--full", *NF4), names=["quantized"])


@unittest.skipUnless(has_gpu(), "no GPU")
class OnAGpu(OnTheCpu):
    device = ("--device", "cuda")
    compute = ("--bnb-4bit-compute-dtype", "bfloat16", "--dtype", "bfloat16")

    def test_inputs_of_layers_in_main_memory(self):
        common = (*NF4, *self.compute, "--gradient-checkpointing")
        for name, more in (("kept", ()), ("offloaded", ("--activation-offloading",))):
            self.finetune(self.root / name, *common, *more)
        self.assertEqual(*((self.root / run / "adapter_model.safetensors").read_bytes() for run in ("kept", "offloaded")))

    def test_no_more_memory_than_allowed(self):
        self.fail_with(OUT_OF_MEMORY, *self.command(self.root / "small", "--max-memory", "1MB"),
                       names=["out of memory", "max_memory", "1000000"])


if __name__ == "__main__":
    unittest.main()

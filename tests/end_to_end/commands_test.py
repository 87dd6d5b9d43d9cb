"""Every command of the program on a tiny model: what docs/cli.md promises of output and of --json keys."""
import json
import re
import shutil
import unittest

from nibble_case import TEST_DATA, NibbleCase

NF4 = ("--load-in-4bit", "--bnb-4bit-quant-type", "nf4")
REPORT = {"bytes_in", "bytes_out", "seconds", "peak_rss_bytes"}


class Commands(NibbleCase):
    def test_version_and_help(self):
        self.assertRegex(self.succeed("--version"), r"\d+\.\d+")
        text = self.succeed("--help")
        for command in "info inspect plan quantize dequantize convert generate tokenize perplexity bench chat".split():
            self.assertIn(command, text)
            self.assertIn(command, self.succeed(command, "--help"))

    def test_info(self):
        info = self.succeed_json({"version", "devices", "isa"}, "info")
        self.assertIn(info["isa"], ("portable", "avx2", "avx512"))
        self.assertIn(info["isa"], self.succeed("info"))

    def test_inspect_needs_the_configuration_only(self):
        alone = self.root / "config-alone"
        alone.mkdir()
        shutil.copy(self.model / "config.json", alone)
        result = self.succeed_json({"memory_footprint_bytes", "num_parameters", "modules"}, "inspect", alone)
        parameters = 2 * 259 * 64 + 64 + 2 * (2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
        self.assertEqual(result["num_parameters"], parameters)
        small = self.succeed_json({"memory_footprint_bytes"}, "inspect", alone, *NF4)
        self.assertLess(small["memory_footprint_bytes"], result["memory_footprint_bytes"])
        text = self.succeed("inspect", alone, *NF4)
        self.assertIn("(q_proj): Linear4bit(in_features=64, out_features=64, bias=False)", text)
        self.assertIn("(lm_head): Linear(in_features=64, out_features=259, bias=False)", text)
        self.assertIn("(q_proj): Linear8bitLt(in_features=64, out_features=64, bias=False)",
                      self.succeed("inspect", alone, "--load-in-8bit"))

    def test_plan(self):
        keys = {"weights_bytes", "total_bytes", "fits"}
        self.assertTrue(self.succeed_json(keys, "plan", self.model, "--vram", "1GiB")["fits"])
        self.assertFalse(self.succeed_json(keys, "plan", self.model, "--vram", "1000")["fits"])
        full = self.succeed_json(keys, "plan", "--params", "7B", "--vram", "12GiB")
        self.assertFalse(full["fits"])
        small = self.succeed_json(keys, "plan", "--params", "7B", "--vram", "12GiB", *NF4)
        self.assertTrue(small["fits"])
        self.assertLess(small["weights_bytes"], 0.4 * full["weights_bytes"])

    def test_plan_training(self):
        keys = {"weights_bytes", "kept_bytes", "total_bytes", "fits", "ways"}
        tight = self.succeed_json(keys, "plan", "--params", "13B", "--train", "--max-length", "4096", "--vram", "16GiB", *NF4)
        self.assertFalse(tight["fits"])
        self.assertTrue(tight["ways"][-1]["fits"])
        options = ["--gradient-checkpointing", "--per-device-train-batch-size", "1", "--optim", "paged_adamw_8bit"]
        loose = self.succeed_json(keys, "plan", "--params", "13B", "--train", "--max-length", "4096", "--vram", "16GiB",
                                  *NF4, *options)
        self.assertTrue(loose["fits"])
        self.assertGreater(loose["host_bytes"], 0)
        self.assertIn("--gradient-checkpointing", self.succeed("plan", self.model, "--train", "--memory", "1GiB"))

    def test_generate(self):
        keys = {"text", "token_ids", "prompt_tokens", "new_tokens", "prefill_tokens_per_second", "decode_tokens_per_second",
                "load_seconds", "memory_footprint_bytes", "peak_rss_bytes"}
        result = self.succeed_json(keys, "generate", self.model, "-p", "Hello", "--max-new-tokens", "8")
        self.assertEqual(result["prompt_tokens"], 5)
        self.assertEqual(result["new_tokens"], len(result["token_ids"]))
        self.assertLessEqual(result["new_tokens"], 8)

    def test_generate_reads_option_file_and_standard_input_alike(self):
        prompt = self.root / "prompt.txt"
        prompt.write_text("Once upon")
        common = ("generate", self.model, "--max-new-tokens", "4")
        first = self.run_nibble(*common, "-p", "Once upon").stdout
        self.assertTrue(first.startswith("Once upon"))
        self.assertEqual(self.run_nibble(*common, "-f", prompt).stdout, first)
        self.assertEqual(self.run_nibble(*common, text="Once upon").stdout, first)

    def test_same_answer_on_any_number_of_threads_and_runs(self):
        for level in ((), NF4, ("--load-in-8bit",)):
            common = ("generate", self.model, *level, "-p", "abc", "--max-new-tokens", "12")
            runs = [self.succeed_json({"token_ids"}, *common, "--threads", threads)["token_ids"] for threads in (1, 2, 3, 2)]
            self.assertEqual(runs, [runs[0]] * 4)

    def test_sampling_follows_the_seed(self):
        common = ("generate", self.model, "-p", "abc", "--do-sample", "--temperature", "1.5", "--top-k", "0",
                  "--max-new-tokens", "16", "--seed")
        first, again, other = (self.succeed_json({"token_ids"}, *common, seed)["token_ids"] for seed in (1, 1, 2))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

    def test_quantized_checkpoint_speaks_as_quantizing_on_load_does(self):
        levels = {"nf4": NF4, "fp4": ("--load-in-4bit",), "nf4-dq": (*NF4, "--bnb-4bit-use-double-quant"),
                  "nf4-32": (*NF4, "--bnb-4bit-blocksize", "32"), "int8": ("--load-in-8bit",)}
        for name, level in levels.items():
            with self.subTest(name):
                out = self.root / f"quantized-{name}"
                report = self.succeed_json(REPORT, "quantize", self.model, out, *level)
                self.assertLess(report["bytes_out"], report["bytes_in"])
                self.assertIn("quantization_config", json.loads((out / "config.json").read_text()))
                common = ("-p", "Hello", "--max-new-tokens", "12")
                saved = self.succeed_json({"token_ids"}, "generate", out, *common)
                loaded = self.succeed_json({"token_ids"}, "generate", self.model, *level, *common)
                self.assertEqual(saved["token_ids"], loaded["token_ids"])
                self.assertEqual(saved["memory_footprint_bytes"], loaded["memory_footprint_bytes"])

    def test_options_without_effect_are_named(self):
        for option, level in ((("--bnb-4bit-compute-dtype", "bfloat16"), "--load-in-4bit"), (("--bnb-4bit-use-double-quant",), "--load-in-4bit"),
                              (("--llm-int8-threshold", "3"), "--load-in-8bit")):
            with self.subTest(option):
                inspect = ("inspect", self.model, *option)
                self.assertEqual(self.run_nibble(*inspect).stderr, f"warning: {option[0]} has no effect without {level}\n")
                self.assertEqual(self.run_nibble(*inspect, level).stderr, "")

    def test_dequantize_gives_a_plain_checkpoint(self):
        small, plain = self.root / "small", self.root / "plain"
        self.succeed("quantize", self.model, small, *NF4)
        self.succeed_json(REPORT, "dequantize", small, plain, "--dtype", "float32")
        self.assertNotIn("quantization_config", json.loads((plain / "config.json").read_text()))
        common = ("-p", "Hello", "--max-new-tokens", "8", "--dtype", "float32")
        self.assertEqual(self.succeed_json({"token_ids"}, "generate", plain, *common)["token_ids"],
                         self.succeed_json({"token_ids"}, "generate", small, *common)["token_ids"])

    def test_tokenize_round_trip(self):
        text = "Grüße, 世界!\n\n  two  spaces\t🙂\n"
        ids = self.succeed("tokenize", self.model, text=text)
        self.assertEqual(len(ids.splitlines()), len(text.splitlines()))
        self.assertEqual(ids.splitlines()[0].split()[:2], ["71", "114"])
        self.assertEqual(self.succeed("tokenize", self.model, "--decode", text=ids), text)

    def test_perplexity(self):
        file = self.root / "text.txt"
        file.write_text("The quick brown fox jumps over the lazy dog. " * 8)
        common = ("perplexity", self.model, "--context", "64", "--stride", "64")
        result = self.succeed_json({"perplexity", "tokens"}, *common, "--file", file)
        self.assertGreater(result["perplexity"], 1)
        self.assertEqual(result["tokens"], 360 - 6)  # the first token of each of six windows has nothing before it
        self.assertEqual(self.succeed_json({"tokens"}, *common, "--file", "-", text=file.read_text()), result)

    def test_bench(self):
        rows = self.succeed_json({"rows"}, "bench", self.model, "--batch-sizes", "1,2", "--prompt-lengths", "8",
                                 "--new-tokens", "4", "--repeats", "1")["rows"]
        self.assertEqual([row["batch_size"] for row in rows], [1, 2])
        self.assertTrue(all(row["decode_tokens_per_second"] > 0 for row in rows))

    def test_chat_takes_a_turn_a_line(self):
        output = self.succeed("chat", self.model, "--max-new-tokens", "5", text="Hello\nAgain\n")
        self.assertGreaterEqual(output.count("\n"), 2)

    def test_convert_gguf(self):
        files = sorted((TEST_DATA / "gguf").glob("*llama*.gguf"))
        if not files:
            self.skipTest("no GGUF model among the test data")
        out = self.root / "converted"
        self.succeed_json(REPORT, "convert", files[0], out)
        self.assertTrue((out / "config.json").exists())
        self.assertTrue((out / "tokenizer.json").exists())
        self.succeed("inspect", out)

    def test_progress_and_timings_stay_off_standard_output(self):
        result = self.run_nibble("quantize", self.model, self.root / "quiet", *NF4, "--json")
        self.assertEqual(len(result.stdout.splitlines()), 1)
        self.assertIsNone(re.search(r"\x1b|\r", result.stderr))


if __name__ == "__main__":
    unittest.main()

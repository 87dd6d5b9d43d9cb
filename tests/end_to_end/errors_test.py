"""Bad input, full disks and Ctrl-C: the exit statuses of docs/cli.md, a last line that says why, nothing half-written."""
import json
import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import time
import unittest

import tiny_model
from nibble_case import NIBBLE, NibbleCase

USAGE, NOT_FOUND, CORRUPT, DEVICE, OTHER = 2, 3, 4, 6, 1


class Errors(NibbleCase):
    def copy(self, name):
        """A copy of the model to spoil."""
        return pathlib.Path(shutil.copytree(self.model, self.root / name))

    def generate(self, model, *options):
        return ("generate", model, "-p", "x", "--max-new-tokens", "1", *options)

    def test_wrong_usage(self):
        for arguments in ((), ("frobnicate",), ("generate",), ("info", "--frobnicate"), ("plan",),
                          ("tokenize", self.model, "--threads"), ("plan", "--params", "many"),
                          ("plan", self.model, "--vram", "some"), ("bench", self.model, "--batch-sizes", "0")):
            with self.subTest(arguments):
                self.fail_with(USAGE, *arguments)

    def test_wrong_options_are_named(self):
        for name, options in {
                "bnb_4bit_quant_type": ("--load-in-4bit", "--bnb-4bit-quant-type", "nf5"),
                "load_in": ("--load-in-4bit", "--load-in-8bit"),
                "threshold": ("--load-in-8bit", "--llm-int8-threshold", "many"),
                "blocksize": ("--load-in-4bit", "--bnb-4bit-blocksize", "63"),
                "dtype": ("--dtype", "float8"),
                "compute": ("--load-in-4bit", "--bnb-4bit-compute-dtype", "int3"),
                "device": ("--device", "gpu"),
                "temperature": ("--do-sample", "--temperature", "-1"),
                "top_p": ("--do-sample", "--top-p", "1.5"),
                "max_new_tokens": ("--max-new-tokens", "0"),
        }.items():
            with self.subTest(name):
                last = self.fail_with(USAGE, *self.generate(self.model), *options)
                self.assertIn(name, last.replace("-", "_"))

    def test_options_of_generation_are_read_before_the_weights(self):
        model = self.copy("options-first")
        (model / "model.safetensors").unlink()
        for command in (self.generate(model), ("chat", model), ("bench", model)):
            with self.subTest(command[0]):
                self.fail_with(USAGE, *command, "--do-sample", "--temperature", "0", names=["temperature"])

    def test_gpus_that_are_not_there(self):
        missing = self.succeed_json({"cuda"}, "info")["cuda"]["missing"]
        last = self.fail_with(DEVICE if missing else USAGE, *self.generate(self.model), "--device", "cuda:99",
                              names=["cuda:99"])
        self.assertIn(missing, last)

    def test_missing_things(self):
        self.fail_with(NOT_FOUND, *self.generate(self.root / "nowhere"), names=["nowhere"])
        self.fail_with(NOT_FOUND, "perplexity", self.model, "--file", self.root / "no.txt", names=["no.txt"])
        self.fail_with(NOT_FOUND, "convert", self.root / "no.gguf", self.root / "out-a", names=["no.gguf"])
        model = self.copy("no-weights")
        (model / "model.safetensors").unlink()
        self.fail_with(NOT_FOUND, *self.generate(model), names=["no-weights"])
        model = self.copy("no-tokenizer")
        (model / "tokenizer.json").unlink()
        self.fail_with(NOT_FOUND, *self.generate(model), names=["tokenizer.json"])

    def test_missing_shard_and_missing_tensor(self):
        model = self.copy("no-shard")
        (model / "model.safetensors").unlink()
        names = tiny_model.shapes(tiny_model.CONFIG)
        (model / "model.safetensors.index.json").write_text(json.dumps(
            {"metadata": {}, "weight_map": {name: "model-00001-of-00002.safetensors" for name in names}}))
        self.fail_with(NOT_FOUND, *self.generate(model), names=["model-00001-of-00002.safetensors"])
        model = self.copy("no-tensor")
        tensors = dict(names)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tiny_model.write_weights(model / "model.safetensors", tensors)
        last = self.fail_with(CORRUPT, *self.generate(model))
        self.assertIn("model.layers.1.mlp.up_proj.weight", last)

    def test_wrong_shape_names_tensor_found_and_expected(self):
        model = self.copy("shape")
        tensors = tiny_model.shapes(tiny_model.CONFIG)
        tensors["model.layers.0.mlp.up_proj.weight"] = (64, 128)
        tiny_model.write_weights(model / "model.safetensors", tensors)
        self.fail_with(CORRUPT, *self.generate(model), names=["model.layers.0.mlp.up_proj.weight", "64", "128"])

    def test_configurations_that_lie(self):
        changes = {"no-json": "{", "empty": "", "array": "[]", "architecture": {"architectures": ["FooForCausalLM"]},
                   "heads": {"num_attention_heads": 5}, "negative": {"hidden_size": -64}, "text": {"hidden_size": "wide"},
                   "huge": {"vocab_size": 2**62}, "zero": {"num_key_value_heads": 0}}
        for name, change in changes.items():
            with self.subTest(name):
                model = self.copy("config-" + name)
                text = change if isinstance(change, str) else json.dumps({**tiny_model.CONFIG, **change})
                (model / "config.json").write_text(text)
                self.fail_with(CORRUPT, *self.generate(model))
                self.fail_with(CORRUPT, "inspect", model)

    def test_truncated_files(self):
        whole = (self.model / "model.safetensors").read_bytes()
        model = self.copy("truncated")
        for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
            with self.subTest(length):
                (model / "model.safetensors").write_bytes(whole[:length])
                self.fail_with(CORRUPT, *self.generate(model), names=["model.safetensors"])
        model = self.copy("truncated-tokenizer")
        text = (self.model / "tokenizer.json").read_bytes()
        (model / "tokenizer.json").write_bytes(text[:len(text) // 2])
        self.fail_with(CORRUPT, *self.generate(model), names=["tokenizer.json"])

    def test_headers_that_lie(self):
        data = bytes(64)
        ok = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
        lies = {"past-the-end": {**ok, "data_offsets": [0, 1 << 40]}, "backwards": {**ok, "data_offsets": [64, 0]},
                "overflow": {**ok, "shape": [1 << 62, 1 << 62]}, "negative": {**ok, "shape": [-4, -4]},
                "dtype": {**ok, "dtype": "Q9"}, "size": {**ok, "shape": [4, 5]}, "no-offsets": {"dtype": "F32", "shape": [1]}}
        for name, lie in lies.items():
            with self.subTest(name):
                model = self.copy("header-" + name)
                header = json.dumps({"model.norm.weight": lie}).encode()
                (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
                self.fail_with(CORRUPT, *self.generate(model), names=["model.safetensors"])
        model = self.copy("header-length")
        (model / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}" + data)
        self.fail_with(CORRUPT, *self.generate(model), names=["model.safetensors"])

    def test_gguf_that_is_none(self):
        file = self.root / "bad.gguf"
        for content in (b"", b"GGUF", b"GGUF" + bytes(12), b"GGUF\x03\0\0\0" + b"\xff" * 16, os.urandom(4096)):
            file.write_bytes(content)
            self.fail_with(CORRUPT, "convert", file, self.root / "out-gguf", names=["bad.gguf"])
            self.assertFalse((self.root / "out-gguf").exists())

    def test_token_ids_outside_the_vocabulary(self):
        self.fail_with(USAGE, "tokenize", self.model, "--decode", text="999999\n")
        self.fail_with(USAGE, "tokenize", self.model, "--decode", text="abc\n")

    def test_prompt_longer_than_the_context(self):
        self.fail_with(USAGE, "generate", self.model, text="x" * 1000)


class Output(NibbleCase):
    """What is on disk after a failure."""

    def quantize(self, out, **options):
        return self.run_nibble("quantize", self.model, out, "--load-in-4bit", **options)

    def workplace(self, name):
        folder = self.root / name
        folder.mkdir()
        return folder

    def test_existing_output_is_refused_and_kept(self):
        out = self.workplace("existing")
        (out / "precious").write_text("kept")
        self.fail_with(USAGE, "quantize", self.model, out, "--load-in-4bit", names=["existing"])
        self.assertEqual([entry.name for entry in out.iterdir()], ["precious"])
        file = self.root / "a-file"
        file.write_text("kept")
        self.fail_with(USAGE, "quantize", self.model, file, "--load-in-4bit", names=["a-file"])
        self.assertEqual(file.read_text(), "kept")

    def test_quantizing_without_a_level_or_twice_is_refused(self):
        self.fail_with(USAGE, "quantize", self.model, self.root / "no-level")
        small = self.root / "once"
        self.assertEqual(self.quantize(small).returncode, 0)
        self.fail_with(USAGE, "quantize", small, self.root / "twice", "--load-in-4bit")
        self.assertFalse((self.root / "twice").exists())

    def test_output_under_a_file_is_an_error(self):
        file = self.root / "not-a-folder"
        file.write_text("")
        result = self.quantize(file / "out")
        self.assertNotEqual(result.returncode, 0)
        self.assertTrue(result.stderr.rstrip("\n").split("\n")[-1].startswith("error: "))

    def test_no_room_leaves_nothing(self):
        folder = self.workplace("full")

        def limit_file_size():
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

        self.assertEqual(signal.getsignal(signal.SIGXFSZ), signal.SIG_IGN)  # so that write() fails instead
        result = self.quantize(folder / "out", preexec_fn=limit_file_size, restore_signals=False)
        self.assertEqual(result.returncode, OTHER, result.stderr)
        self.assertTrue(result.stderr.rstrip("\n").split("\n")[-1].startswith("error: "))
        self.assertEqual(list(folder.iterdir()), [])

    def test_full_standard_output_is_an_error(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            result = subprocess.run([NIBBLE, "info"], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(result.returncode, OTHER)
        self.assertTrue(result.stderr.startswith("error: "))

    def test_interrupting_leaves_nothing(self):
        model = tiny_model.write_large_sparse_model(self.root / "large")
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number.name):
                folder = self.workplace("interrupted-" + number.name)
                process = subprocess.Popen([NIBBLE, "quantize", model, folder / "out", "--load-in-4bit"],
                                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                while not list(folder.iterdir()) and process.poll() is None:
                    time.sleep(0.005)
                time.sleep(0.05)
                process.send_signal(number)
                _, error = process.communicate(timeout=120)
                self.assertEqual(process.returncode, OTHER, error)
                self.assertTrue(error.rstrip("\n").split("\n")[-1].startswith("error: "))
                self.assertEqual(list(folder.iterdir()), [])


if __name__ == "__main__":
    unittest.main()

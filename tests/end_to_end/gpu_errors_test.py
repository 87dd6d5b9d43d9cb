"""What --device says where there is no GPU: none in sight, an index that is not there, an old driver in the place of its
own; and, with a GPU, where its memory is not enough."""
import os
import unittest

from nibble_case import NibbleCase

USAGE, OUT_OF_MEMORY, DEVICE = 2, 5, 6
NO_CUBLAS_LT = os.environ.get("NO_CUBLAS_LT")  # the folder of a libcublasLt.so.13 without the library's functions
OLD_DRIVER = os.environ.get("OLD_DRIVER")  # the folder of its libcuda.so.1; none for a program built without CUDA
WITHOUT_GPU = ("the NVIDIA driver shows no GPU", "no NVIDIA driver is installed", "this program was built without CUDA")


class GpuErrors(NibbleCase):
    def bench(self, device):
        return ("bench", self.model, "--prompt-lengths", "4", "--new-tokens", "2", "--repeats", "1", "--device", device)

    def placed_on_the_cpu(self, **environment):
        """What auto says when it takes the CPU."""
        result = self.run_nibble(*self.bench("auto"), "--verbose", env={**os.environ, **environment})
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("device auto: cpu: ", result.stderr)
        return result.stderr

    def test_unknown_names(self):
        for name in ("gpu", "cuda:", "cuda:x", "cuda:-1"):
            self.fail_with(USAGE, *self.bench(name), names=["device", name, "cuda:N"])

    def test_hidden_gpus(self):
        hidden = {"CUDA_VISIBLE_DEVICES": ""}
        last = self.fail_with(DEVICE, *self.bench("cuda"), names=["cuda:0"], env={**os.environ, **hidden})
        self.assertTrue(any(why in last for why in WITHOUT_GPU), last)
        self.assertTrue(any(why in self.placed_on_the_cpu(**hidden) for why in WITHOUT_GPU))

    def has_gpu(self):
        return "cuda:0: " in self.succeed("info")

    def test_memory_that_auto_counts(self):
        """A limit is on what a GPU gives: where none has room, the CPU takes the model all the same, unless it was named."""
        result = self.run_nibble(*self.bench("auto"), "--max-memory", "4KB")
        self.assertEqual(result.returncode, 0, result.stderr)
        if self.has_gpu():
            self.assertIn("warning: device auto: cpu: the model needs about", result.stderr)
            self.assertIn("max_memory", result.stderr)
        self.fail_with(USAGE, *self.bench("cpu"), "--max-memory", "4KB", names=["max_memory", "CPU"])

    def test_an_index_that_is_not_there(self):
        self.fail_with(USAGE if self.has_gpu() else DEVICE, *self.bench("cuda:77"), names=["cuda:77"])

    def test_memory_that_is_not_there(self):
        if not self.has_gpu():
            self.skipTest("no GPU")
        self.fail_with(OUT_OF_MEMORY, *self.bench("cuda"), "--max-memory", "4KB", names=["cuda:0", "out of memory", "max_memory"])
        self.succeed(*self.bench("cuda"), "--max-memory", "1GB")

    def test_a_profile_of_many_steps(self):
        if not self.has_gpu():
            self.skipTest("no GPU")
        result = self.run_nibble("bench", self.model, "--prompt-lengths", "4", "--new-tokens", "8", "--repeats", "1", "--device", "cuda",
                                 env={**os.environ, "NIBBLE_PROFILE": "1"})
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"\d calls  rms_norm")

    @unittest.skipUnless(NO_CUBLAS_LT, "the program was built without CUDA")
    def test_without_cublas_lt(self):
        if not self.has_gpu():
            self.skipTest("no GPU")
        without = {**os.environ, "LD_LIBRARY_PATH": NO_CUBLAS_LT}
        self.assertIn("cuBLASLt: not found", self.succeed("info", env=without))
        self.assertEqual(self.succeed_json({"cuda"}, "info", env=without)["cuda"]["cublas_lt"], "")
        data = self.root / "data.jsonl"
        data.write_text('{"text": "The quick brown fox"}\n')
        for device, environment, is_told in (("cuda", without, True), ("auto", without, True), ("cpu", without, False), ("cuda", None, False)):
            out = self.root / f"out-{device}-{is_told}"
            result = self.run_nibble("finetune", self.model, "--device", device, "--data", data, "--output", out,
                                     "--max-steps", "1", "--save-steps", "0", env=environment)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual("warning: cuBLASLt" in result.stderr, is_told)
        text = self.root / "text.txt"
        text.write_text("The quick brown fox jumps over the lazy dog.\n" * 20)
        command = ("perplexity", self.model, "--device", "cuda", "--dtype", "bfloat16", "--context", "200", "--stride", "200", "--file", text)
        found, expected = (self.succeed_json({"perplexity"}, *command, env=env)["perplexity"] for env in (without, None))
        self.assertAlmostEqual(found / expected, 1, delta=1e-2)

    @unittest.skipUnless(OLD_DRIVER, "the program was built without CUDA")
    def test_an_old_driver(self):
        old = {"LD_LIBRARY_PATH": OLD_DRIVER}
        text = "the NVIDIA driver supports CUDA 11.2, this program needs "
        self.fail_with(DEVICE, *self.bench("cuda"), names=["cuda:0", text, "update the driver"], env={**os.environ, **old})
        self.assertIn(text, self.placed_on_the_cpu(**old))
        self.assertIn(text, self.run_nibble("info", env={**os.environ, **old}).stdout)


if __name__ == "__main__":
    unittest.main()

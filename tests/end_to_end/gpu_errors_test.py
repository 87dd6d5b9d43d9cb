"""What --device says where there is no GPU: none in sight, an index that is not there, an old driver in the place of its own."""
import os
import unittest

from nibble_case import NibbleCase

USAGE, DEVICE = 2, 6
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

    @unittest.skipUnless(OLD_DRIVER, "the program was built without CUDA")
    def test_an_old_driver(self):
        old = {"LD_LIBRARY_PATH": OLD_DRIVER}
        text = "the NVIDIA driver supports CUDA 11.2, this program needs "
        self.fail_with(DEVICE, *self.bench("cuda"), names=["cuda:0", text, "update the driver"], env={**os.environ, **old})
        self.assertIn(text, self.placed_on_the_cpu(**old))
        self.assertIn(text, self.run_nibble("info", env={**os.environ, **old}).stdout)


if __name__ == "__main__":
    unittest.main()

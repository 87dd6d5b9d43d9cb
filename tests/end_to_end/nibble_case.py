"""What the end-to-end tests share: a tiny model in a folder of its own, and the real program run on it."""
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import tiny_model

NIBBLE = os.environ["NIBBLE"]
TEST_DATA = pathlib.Path(os.environ["NIBBLE_TEST_DATA"])


class NibbleCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.root = pathlib.Path(cls.folder.name)
        cls.model = tiny_model.write_model(cls.root / "model")

    def run_nibble(self, *arguments, text="", **options):
        """The finished process, output decoded."""
        return subprocess.run([NIBBLE, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=300, **options)

    def succeed(self, *arguments, **options):
        result = self.run_nibble(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def succeed_json(self, keys, *arguments, **options):
        """The one JSON object on standard output, which must have `keys`."""
        output = self.succeed(*arguments, "--json", **options)
        self.assertEqual(output.count("\n"), 1, output)
        result = json.loads(output)
        self.assertLessEqual(set(keys), result.keys())
        return result

    def fail_with(self, status, *arguments, names=(), **options):
        """Runs and expects a failure: the status, and a last line that starts with error: and names what is wrong."""
        result = self.run_nibble(*arguments, **options)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        last = result.stderr.rstrip("\n").split("\n")[-1]
        self.assertTrue(last.startswith("error: "), result.stderr)
        for name in names:
            self.assertIn(str(name), last)
        return last

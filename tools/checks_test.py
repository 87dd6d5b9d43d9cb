"""Tests of check_layers.py and check_sizes.py: each planted violation must be found, and the project itself is clean."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOLS = pathlib.Path(__file__).resolve().parent
PROJECT = TOOLS.parent


def run(tool, *arguments):
    result = subprocess.run([sys.executable, TOOLS / tool, *map(str, arguments)], capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


class Tree(unittest.TestCase):
    """A toy project of three layers: base <- quant <- ops, with the public header nibble/types."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.write("layers.txt", "nibble/types:\nnibble: nibble/types\nbase: nibble/types  # lowest\nquant: base\n"
                                 "ops: quant base\ncli: base nibble nibble/types\n")
        self.write("include/nibble/types.h", "")
        self.write("include/nibble/model.h", '#include "nibble/types.h"\n')
        self.write("src/base/error.h", '#include "nibble/types.h"\n')
        self.write("src/quant/nf4.cpp", '#include <vector>\n#include "base/error.h"\n')
        self.write("src/ops/add.cpp", '#include "quant/nf4.h"\n')
        self.write("cli/main.cpp", '#include "nibble/model.h"\n#include "cli/arguments.h"\n#include "arguments.h"\n')

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def check(self):
        return run("check_layers.py", self.root / "layers.txt",
                   *(self.root / name for name in ("include", "src", "cli")))

    def test_clean_tree_passes(self):
        self.assertEqual(self.check(), (0, "layers: ok\n"))

    def test_upward_include_is_named_by_file_and_line(self):
        self.write("src/quant/nf4.cpp", '\n\n  #  include "ops/add.h"\n')
        status, output = self.check()
        self.assertEqual(status, 1)
        self.assertIn("src/quant/nf4.cpp:3: quant may not include ops/add.h", output)

    def test_angle_brackets_do_not_hide_an_include(self):
        self.write("src/quant/nf4.cpp", "#include <ops/add.h>\n")
        self.assertEqual(self.check()[0], 1)

    def test_most_specific_module_decides(self):
        self.write("include/nibble/types.h", '#include "nibble/model.h"\n')
        status, output = self.check()
        self.assertEqual(status, 1)
        self.assertIn("nibble/types may not include nibble/model.h", output)

    def test_command_line_sees_the_public_api_only(self):
        self.write("cli/generate.cpp", '#include "quant/format.h"\n')
        status, output = self.check()
        self.assertEqual(status, 1)
        self.assertIn("cli/generate.cpp:1: cli may not include quant/format.h", output)

    def test_stray_folder_is_reported(self):
        self.write("src/misc/x.h", "")
        status, output = self.check()
        self.assertEqual(status, 1)
        self.assertIn("belongs to no module", output)

    def test_cycle_is_rejected(self):
        self.write("layers.txt", "base: ops\nops: quant\nquant: base\n")
        status, output = self.check()
        self.assertEqual(status, 1)
        self.assertIn("cycle", output)

    def test_undeclared_module_is_rejected(self):
        self.write("layers.txt", "base: bsae\n")
        status, output = self.check()
        self.assertEqual(status, 1)
        self.assertIn("bsae", output)

    def test_tests_get_their_own_rules_and_others_do_not(self):
        self.write("layers_test.txt", "base: quant\n")
        self.write("src/base/error_test.cpp", '#include "quant/format.h"\n')
        self.assertEqual(self.check()[0], 0)
        self.write("src/base/error.cpp", '#include "quant/format.h"\n')
        self.assertEqual(self.check()[0], 1)


class Sizes(unittest.TestCase):
    def check(self, name, text):
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, name).write_text(text)
            return run("check_sizes.py", folder)

    def test_limits(self):
        self.assertEqual(self.check("a.cpp", "//\n" * 500), (0, "sizes: ok\n"))
        status, output = self.check("a.cpp", "//\n" * 501)
        self.assertEqual(status, 0)
        self.assertIn("a.cpp:1: 501 lines", output)
        self.assertEqual(self.check("a.cpp", "//\n" * 801)[0], 1)
        self.assertIn("header of 151 lines", self.check("a.h", "//\n" * 151)[1])

    def test_long_function_is_listed_at_its_first_line(self):
        body = "namespace a {\nint f(int x) {\n" + "  x += 1;\n" * 90 + "  return x;\n}\n}\n"
        status, output = self.check("a.cpp", body)
        self.assertEqual(status, 0)
        self.assertIn("a.cpp:2: function of 93 lines", output)


class Project(unittest.TestCase):
    def test_layers_of_this_project(self):
        status, output = run("check_layers.py", PROJECT / "tools/layers.txt",
                             *(PROJECT / name for name in ("include", "src", "cli")))
        self.assertEqual(status, 0, output)

    def test_sizes_of_this_project(self):
        status, output = run("check_sizes.py", *(PROJECT / name for name in ("include", "src", "cli", "tests", "tools")))
        self.assertEqual(status, 0, output)


if __name__ == "__main__":
    unittest.main()

"""States of `nibble finetune`'s optimizers in those of bitsandbytes: every tensor arrives as it was, and a step follows.

Run by `make interop`; needs torch, bitsandbytes and safetensors. The keys of the file are the path in the state dictionary, joined by
dots. NIBBLE_BUILD names the build folder.
"""
import json
import pathlib
import tempfile
import unittest

import bitsandbytes as bnb
import torch
from bitsandbytes_test import nibble, tiny_model
from safetensors.torch import load_file

QUANT_STATE = "__bnb_optimizer_quant_state__"
KEYS = ("lr", "betas", "eps", "weight_decay", "alpha", "t_alpha", "t_beta3", "params")
OPTIMIZERS = {"adamw_torch": 32, "adamw_8bit": 8, "paged_adamw_8bit": 8, "paged_adamw_32bit": 32, "ademamix": 32, "ademamix_8bit": 8,
              "lion_32bit": 32, "lion_8bit": 8, "rmsprop_bnb_8bit": 8, "adagrad": 32}


def state_dict(tensors):
    state = {}
    for name, tensor in tensors.items():
        if not name.startswith("state."):
            continue
        _, index, *path = name.split(".")
        entry = state.setdefault(int(index), {QUANT_STATE: {}})
        if path == ["step"]:
            entry["step"] = int(tensor)
        else:
            entry[QUANT_STATE][path[1]] = tensor
    return state


class OptimizerStates(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = pathlib.Path(folder.name)
        cls.model = tiny_model.write_model(cls.root / "model")
        cls.data = cls.root / "data.jsonl"
        cls.data.write_text("".join(json.dumps({"text": "The quick brown fox"[i:]}) + "\n" for i in range(4)))

    def load(self, path):
        """The optimizer of bitsandbytes with the file's states, and those states."""
        tensors = load_file(path)
        header = json.loads(bytes(tensors["param_groups"].tolist()))
        state, groups = state_dict(tensors), header["param_groups"]
        bits = {group["optim_bits"] for group in groups}
        planes = 2 if header["optimizer"] == "AdEMAMix" else 1
        parameters = [torch.nn.Parameter(torch.zeros(state[i][QUANT_STATE]["state1"].shape[planes - 1:]))
                      for group in groups for i in group["params"]]
        optimizer = getattr(bnb.optim, header["optimizer"] + f"{bits.pop()}bit")(parameters)
        optimizer.load_state_dict({"state": state, "param_groups": [{key: group[key] for key in KEYS if key in optimizer.param_groups[0]}
                                                                    for group in groups]})
        return optimizer, parameters, state

    def test_arrive_in_bitsandbytes(self):
        for name, bits in OPTIMIZERS.items():
            with self.subTest(name):
                out = self.root / name
                nibble("finetune", self.model, "--data", self.data, "--output", out, "--optim", name, "--max-steps", 3, "--save-steps", 3,
                       "--r", 64)
                optimizer, parameters, state = self.load(out / "checkpoint-3/optimizer.safetensors")
                kinds = {entry[QUANT_STATE]["state1"].dtype for entry in state.values()}
                self.assertEqual(kinds, {torch.float32, torch.uint8} if bits == 8 else {torch.float32})  # small ones stay in 32 bits
                for index, parameter in enumerate(parameters):
                    found, expected = optimizer.state[parameter], state[index][QUANT_STATE]
                    self.assertEqual(found["step"], 3)
                    for key, tensor in expected.items():
                        self.assertEqual(found[key].dtype, tensor.dtype)
                        self.assertTrue(torch.equal(found[key], tensor), (index, key))
                    parameter.grad = torch.full_like(parameter, 1e-3)
                optimizer.step()
                self.assertEqual(optimizer.state[parameters[0]]["step"], 4)


if __name__ == "__main__":
    unittest.main()

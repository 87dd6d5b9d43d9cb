"""Loads an optimizer's file into bitsandbytes and checks what arrived: optimizer_state.py FILE.safetensors.

Needs torch, bitsandbytes and safetensors. The keys of the file are the path in the state dictionary, joined by dots.
"""
import json
import sys

import bitsandbytes as bnb
import torch
from safetensors.torch import load_file

QUANT_STATE = "__bnb_optimizer_quant_state__"
KEYS = ("lr", "betas", "eps", "weight_decay", "alpha", "t_alpha", "t_beta3", "params")


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


def main(path):
    tensors = load_file(path)
    header = json.loads(bytes(tensors["param_groups"].tolist()))
    state = state_dict(tensors)
    groups = header["param_groups"]
    bits = {g["optim_bits"] for g in groups}
    planes = 2 if header["optimizer"] == "AdEMAMix" else 1
    parameters = [torch.nn.Parameter(torch.zeros(state[i][QUANT_STATE]["state1"].shape[planes - 1 :]))
                  for g in groups for i in g["params"]]
    optimizer = getattr(bnb.optim, header["optimizer"] + f"{bits.pop()}bit")(parameters)
    optimizer.load_state_dict({"state": state,
                               "param_groups": [{key: g[key] for key in KEYS if key in optimizer.param_groups[0]} for g in groups]})
    for index, parameter in enumerate(parameters):
        found = optimizer.state[parameter]
        assert found["step"] == state[index]["step"]
        for name, tensor in state[index][QUANT_STATE].items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), (index, name)
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    print(f"{header['optimizer']}: {len(parameters)} parameters, next step {optimizer.state[parameters[0]]['step']}")


if __name__ == "__main__":
    main(sys.argv[1])

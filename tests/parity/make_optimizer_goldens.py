"""Five steps of torch's optimizers and the factors of transformers' schedules: make_optimizer_goldens.py TARGET_FILE.

Writes tests/data/optim/torch.safetensors. Made with torch 2.15 (CPU) and transformers 5.23.
"""
import sys

import torch
import transformers
from safetensors.torch import save_file

COUNT, STEPS = 600, 5
OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW([p], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD([p], lr=1e-2, momentum=0.9, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop([p], lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad([p], lr=1e-2, eps=1e-10, weight_decay=0.1),
}
SCHEDULES = {"linear": (10, 100), "cosine": (10, 100), "constant": (0, 100), "constant_with_warmup": (10, 100),
             "linear0": (0, 30), "cosine0": (0, 30)}


def factors(name, warmup, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = transformers.get_scheduler(name.rstrip("0"), optimizer, num_warmup_steps=warmup, num_training_steps=total)
    result = []
    for _ in range(total + 5):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return torch.tensor(result, dtype=torch.float64)


def main(target):
    torch.manual_seed(0)
    tensors = {"p": torch.randn(COUNT)}
    for i in range(STEPS):
        tensors[f"g{i}"] = torch.randn(COUNT) * 0.1
    for name, make in OPTIMIZERS.items():
        parameter = torch.nn.Parameter(tensors["p"].clone())
        optimizer = make(parameter)
        for i in range(STEPS):
            parameter.grad = tensors[f"g{i}"].clone()
            optimizer.step()
        tensors[name] = parameter.detach().clone()
    for name, (warmup, total) in SCHEDULES.items():
        tensors[f"schedule.{name}.{warmup}.{total}"] = factors(name, warmup, total)
    save_file(tensors, target, metadata={"torch": torch.__version__, "transformers": transformers.__version__})


if __name__ == "__main__":
    main(sys.argv[1])

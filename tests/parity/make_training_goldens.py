#!/usr/bin/env python3
"""Adapters of the tiny models, with the loss and gradients that torch + PEFT give, for tests/data/training.

    python tests/parity/make_training_goldens.py tests/data/models tests/data/training tests/data/full_training [CASE ...]

Each NAME/ is an adapter that PEFT saved (A and B random), with goldens.safetensors: two sequences whose first targets are
left out, the summed loss, the gradients of everything trained, and logits with the adapter applied. BASE.MORE is another
adapter of BASE. full_training holds the same of models that are trained whole, pissa and olora beside it adapters that started so, seq2seq_training adapters of encoder-decoders.
"""
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

CASES = {
    "llama": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "llama-odd": dict(r=3, lora_alpha=16, target_modules="all-linear", use_rslora=True),
    "llama-bias": dict(r=4, lora_alpha=4, target_modules=r".*layers\.1\.(mlp|self_attn)\..*_proj",
                       rank_pattern={"down_proj": 2, r"self_attn\.k_proj": 6}, alpha_pattern={"down_proj": 3}),
    "qwen3": dict(r=4, lora_alpha=8, target_modules=["o_proj", "gate_proj"], layers_to_transform=[1]),
    "mistral-window": dict(r=2, lora_alpha=8, target_modules="all-linear", exclude_modules=["up_proj"]),
    "gpt2": dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    "gpt-neox": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "bloom-odd": dict(r=4, lora_alpha=8, target_modules=["query_key_value", "dense_4h_to_h"]),
    "opt-350m": dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
    "llama.dora": dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], use_dora=True,
                       modules_to_save=["lm_head", "embed_tokens", "model.norm"]),
    "gpt2.dora": dict(r=4, lora_alpha=8, target_modules=["c_attn"], use_dora=True, bias="lora_only", fan_in_fan_out=True),
    "opt.bias": dict(r=4, lora_alpha=8, target_modules=["q_proj", "fc2"], bias="all"),
    "gemma2": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "falcon-rw": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "stablelm-12b": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "mixtral.aux": dict(r=3, lora_alpha=6, target_modules=["v_proj", "w2", "gate"]),
    "mixtral": dict(r=3, lora_alpha=6, target_modules=["q_proj", "o_proj", "w1", "w2", "w3", "gate"]),
}
SEQ2SEQ = {
    "t5": dict(r=4, lora_alpha=8, target_modules=["q", "v"]),
    "t5-gated": dict(r=3, lora_alpha=6, target_modules="all-linear"),
}
TAKEN_OFF = dict(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"])  # off the weights: pissa and olora
FULL = ("llama", "opt-350m", "gpt2", "gemma2", "mixtral", "t5")  # trained whole
SOURCES = (21, 9)  # tokens of an encoder-decoder's sources; its sequences start with decoder_start_token_id
BALANCE = 0.5  # of mixtral.aux: router_aux_loss_coef
LENGTHS, SKIPPED = (30, 13), (4, 1)  # tokens of the sequences, and how many of each predict nothing


class Expert(torch.nn.Module):
    """Mixtral's as a module of three linear layers, as in the files: transformers 5 fuses them."""

    def __init__(self, stored, prefix):
        super().__init__()
        for name in ("w1", "w2", "w3"):
            weight = stored[f"{prefix}.{name}.weight"].float()
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = torch.nn.Parameter(weight)
            setattr(self, name, linear)

    def forward(self, x):
        return self.w2(torch.nn.functional.silu(self.w1(x)) * self.w3(x))


class Experts(torch.nn.Module):
    def __init__(self, stored, prefix, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = torch.nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.gate.weight = torch.nn.Parameter(stored[prefix + ".gate.weight"].float())
        self.experts = torch.nn.ModuleList(Expert(stored, f"{prefix}.experts.{e}") for e in range(config.num_local_experts))

    def forward(self, hidden):
        x = hidden.reshape(-1, hidden.shape[-1])
        weights, chosen = torch.topk(self.gate(x).softmax(-1), self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        total = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, places = torch.where(chosen == e)
            total = total.index_add(0, rows, expert(x[rows]) * weights[rows, places, None])
        return total.reshape(hidden.shape)


def load(models, name):
    if name in SEQ2SEQ:
        return AutoModelForSeq2SeqLM.from_pretrained(models / name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32)
    if name == "mixtral":
        ids = torch.arange(3, 40)[None]
        with torch.no_grad():
            before = model(ids).logits
        stored = load_file(models / name / "model.safetensors")
        for number, layer in enumerate(model.model.layers):
            layer.mlp = Experts(stored, f"model.layers.{number}.block_sparse_moe", model.config)
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-4)
        model.config.model_type = "plain"  # or PEFT looks for the fused experts
    return model


def file_name(key):
    return key.replace(".mlp.gate.", ".block_sparse_moe.gate.").replace(".mlp.experts.", ".block_sparse_moe.experts.")


def make(models, out, name, options):
    torch.manual_seed(len(name))
    base = name.split(".")[0]
    model = load(models, base)
    peft = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM" if base in SEQ2SEQ else "CAUSAL_LM", **options))
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if "lora_magnitude" in key:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            elif "lora_" in key:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            elif parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    peft.save_pretrained(folder)
    (folder / "README.md").unlink()
    if base == "mixtral":
        saved = load_file(folder / "adapter_model.safetensors")
        save_file({file_name(key): value for key, value in saved.items()}, folder / "adapter_model.safetensors")
    peft.eval()  # GPT-2 has dropouts of its own
    tensors = gradients(models, base, peft, BALANCE if name.endswith(".aux") else 0)
    ids = tensors["ids"][None, :LENGTHS[0]].long()
    with torch.no_grad():
        given = dict(input_ids=tensors["source"][None, :SOURCES[0]].long(), decoder_input_ids=ids) if base in SEQ2SEQ else dict(input_ids=ids)
        tensors["logits"] = peft(**given).logits[0].contiguous()
    save_file(tensors, folder / "goldens.safetensors")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(str(models / name.split(".")[0]), name.split(".")[0]))


def gradients(models, name, model, balance=0):
    """The batch, its summed loss, and the gradient of every trained parameter. `balance`: of the routers, to each target."""
    routers = [layer.mlp.gate for layer in model.get_base_model().model.layers] if balance else []
    routed = [[] for _ in routers]
    for router, logits in zip(routers, routed):
        router.register_forward_hook(lambda _, __, out, logits=logits: logits.append(out))
    sources = [None, None]
    if name in SEQ2SEQ:
        goldens = load_file(models / name / "seq2seq.safetensors")
        prompt = torch.cat([goldens["target"], goldens["target"][1:]]).long()
        prompt[LENGTHS[0]] = prompt[0]
        source = goldens["source"].long()
        sources = [source[:SOURCES[0]], source[SOURCES[0]:SOURCES[0] + SOURCES[1]]]
    else:
        prompt = load_file(models / name / "goldens.safetensors")["prompt"].long()
    sequences = [prompt[:LENGTHS[0]], prompt[LENGTHS[0]:LENGTHS[0] + LENGTHS[1]]]
    total = 0
    for ids, skipped, source in zip(sequences, SKIPPED, sources):
        given = dict(input_ids=ids[None]) if source is None else dict(input_ids=source[None], decoder_input_ids=ids[None])
        logits = model(**given).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits[skipped:-1], ids[skipped + 1:], reduction="sum")
    cross_entropy = total.detach()[None]
    if balance:
        config = model.config
        load = load_balancing_loss_func(tuple(torch.cat(logits) for logits in routed), config.num_local_experts,
                                        config.num_experts_per_tok)
        total = total + balance * load * sum(n - s - 1 for n, s in zip(LENGTHS, SKIPPED))
    total.backward()
    tensors = {"ids": torch.cat(sequences).int(), "lengths": torch.tensor(LENGTHS).int(), "skipped": torch.tensor(SKIPPED).int(),
               "loss": total.detach()[None]}
    if balance:
        tensors["cross_entropy"] = cross_entropy
    if sources[0] is not None:
        tensors |= {"source": torch.cat(sources).int(), "source_lengths": torch.tensor(SOURCES).int()}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            for infix in (".modules_to_save.default", ".default.weight" if "magnitude" in key else ".default", ".base_layer"):
                key = key.replace(infix, "")
            tensors[file_name(key.removeprefix("base_model.model."))] = parameter.grad
    return tensors


def make_full(models, out, name):
    torch.manual_seed(1)
    model = load(models, name).eval()
    save_file(gradients(models, name, model), out / f"{name}.safetensors")


def make_taken_off(models, out, start):
    """An adapter of llama as PEFT saves it after training (A and B moved), what it stands beside, and its logits."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(models / "llama", dtype=torch.float32)
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=start, **TAKEN_OFF))
    tensors = {key.replace("base_model.model.", "").replace(".base_layer", ""): parameter.detach().clone()
               for key, parameter in peft.named_parameters() if "layers.0" in key and "base_layer" in key}
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if "lora_" in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    shutil.rmtree(out, ignore_errors=True)
    peft.save_pretrained(out)
    (out / "README.md").unlink()
    tensors["ids"] = load_file(models / "llama" / "goldens.safetensors")["prompt"][:20].int()
    with torch.no_grad():
        tensors["logits"] = peft(tensors["ids"][None].long()).logits[0].contiguous()
    save_file(tensors, out / "goldens.safetensors")
    config = out / "adapter_config.json"
    config.write_text(config.read_text().replace(str(models / "llama"), "llama"))


if __name__ == "__main__":
    models, out, full = map(pathlib.Path, sys.argv[1:4])
    only = sys.argv[4:]
    for case, case_options in CASES.items():
        if not only or case in only:
            make(models, out, case, case_options)
    for case, case_options in SEQ2SEQ.items():
        if not only or case in only:
            make(models, full.parent / "seq2seq_training", case, case_options)
    full.mkdir(exist_ok=True)
    for name in FULL:
        if not only or name in only:
            make_full(models, full, name)
    for start in ("pissa", "olora"):
        if not only or start in only:
            make_taken_off(models, full.parent / start, start)

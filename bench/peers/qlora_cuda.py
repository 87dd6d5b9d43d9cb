#!/usr/bin/env python3
"""Training steps of transformers + PEFT + bitsandbytes over random weights: the peer of bench_train.

usage: qlora_cuda.py CONFIG_DIRECTORY [--batch 4] [--length 1024] [--gradient-checkpointing]
       [--level nf4+dq]
"""
import argparse
import statistics
import time

import torch
import transformers


def build(arguments):
    """The model with its adapter, quantized layer by layer so that 16-bit weights never lie on the GPU together."""
    import bitsandbytes as bnb
    import peft

    config = transformers.AutoConfig.from_pretrained(arguments.config)
    config.use_cache = False
    torch.manual_seed(1)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head" or arguments.level == "bf16":
            continue
        weight = torch.randn(module.out_features, module.in_features, dtype=torch.bfloat16, device="cuda") * 0.02
        linear = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4",
                                   compress_statistics=arguments.level == "nf4+dq", compute_dtype=torch.bfloat16,
                                   device="meta")
        linear.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4",
                                          compress_statistics=arguments.level == "nf4+dq").to("cuda")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, linear)
    for name, parameter in list(model.named_parameters()):
        if parameter.device.type == "meta":
            parent, _, child = name.rpartition(".")
            value = torch.ones if "norm" in name else lambda *s, **k: torch.randn(*s, **k) * 0.02
            setattr(model.get_submodule(parent), child,
                    torch.nn.Parameter(value(*parameter.shape, dtype=torch.bfloat16, device="cuda"),
                                       requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config, device="cuda")
    model.is_loaded_in_4bit = arguments.level != "bf16"
    if model.is_loaded_in_4bit:
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=arguments.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False})
    elif arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05,
                                                      target_modules="all-linear", task_type="CAUSAL_LM"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--level", default="nf4+dq")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    import bitsandbytes as bnb

    model = build(arguments)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = bnb.optim.PagedAdamW8bit(trained, lr=1e-4)
    seconds = []
    torch.cuda.reset_peak_memory_stats()
    for step in range(2 + arguments.steps):
        ids = torch.randint(0, model.config.vocab_size, (arguments.batch, arguments.length), device="cuda")
        torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if step >= 2:
            seconds.append(time.perf_counter() - begin)
    step = statistics.median(seconds)
    print(f"{arguments.level} {arguments.batch}x{arguments.length} checkpointing "
          f"{'on' if arguments.gradient_checkpointing else 'off'}: {arguments.batch * arguments.length / step:.0f} tok/s, "
          f"step {step * 1e3:.1f} ms, peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()

"""A Llama of random weights on a device, its linear layers bitsandbytes' at a level; only one 16-bit weight at a time
lies there, and nothing comes from the host."""
import torch
import transformers


def four_bit_linear(module, weight, level, device):
    import bitsandbytes as bnb
    options = dict(quant_type=level[:3], compress_statistics=level.endswith("+dq"))
    linear = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16,
                               device="meta", **options)
    linear.weight = bnb.nn.Params4bit(weight, requires_grad=False, **options).to(device)
    return linear


def eight_bit_linear(module, weight, device):
    import bitsandbytes as bnb
    linear = bnb.nn.Linear8bitLt(module.in_features, module.out_features, bias=False, has_fp16_weights=False,
                                 threshold=6.0, device="meta")
    linear.weight = bnb.nn.Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False).to(device)
    return linear


def replace(model, name, value):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, value)


def build(directory, level, device="cuda"):
    """level: bf16, int8, nf4, nf4+dq, fp4, fp4+dq."""
    config = transformers.AutoConfig.from_pretrained(directory)
    torch.manual_seed(1)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head" or level == "bf16":
            continue
        weight = torch.randn(module.out_features, module.in_features, dtype=torch.bfloat16, device=device) * 0.02
        replace(model, name, eight_bit_linear(module, weight, device) if level == "int8"
                else four_bit_linear(module, weight, level, device))
    for name, parameter in list(model.named_parameters()):
        if parameter.device.type != "meta":
            continue
        value = torch.ones if "norm" in name else lambda *s, **k: torch.randn(*s, **k) * 0.02
        replace(model, name, torch.nn.Parameter(value(*parameter.shape, dtype=torch.bfloat16, device=device),
                                                requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()

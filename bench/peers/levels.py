"""The quantization levels that the peer scripts measure, as transformers' BitsAndBytesConfig."""
import torch
from transformers import BitsAndBytesConfig


def four_bit(quant_type, nested=False, blocksize=64, skip=None):
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=nested,
                              bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=skip)


LEVELS = {
    "bf16": None,
    "int8": BitsAndBytesConfig(load_in_8bit=True),
    "nf4": four_bit("nf4"),
    "nf4+dq": four_bit("nf4", nested=True),
    "fp4": four_bit("fp4"),
    "fp4+dq": four_bit("fp4", nested=True),
}


def load(model, level, device="cpu"):
    """The model at a level on a device, unquantized weights in bfloat16."""
    from transformers import AutoModelForCausalLM
    options = {} if LEVELS[level] is None else {"quantization_config": LEVELS[level]}
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map=device, **options).eval()

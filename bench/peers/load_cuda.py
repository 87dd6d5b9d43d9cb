#!/usr/bin/env python3
"""Loading by transformers + bitsandbytes, to the first token: the peer of `nibble bench MODEL --new-tokens 1` under `time`.

usage: load_cuda.py MODEL_DIRECTORY [--quantize nf4+dq|int8] [--device cuda]

Prints the seconds since the process began and those after the imports. A quantized checkpoint is loaded as it is."""
import argparse
import time

begin = time.time()
import torch  # noqa: E402
import transformers  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--quantize", choices=("nf4+dq", "int8"))
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    options = {}
    if arguments.quantize == "nf4+dq":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
    elif arguments.quantize == "int8":
        options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    imported = time.time()
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16, device_map={"": arguments.device},
                                                              **options)
    loaded = time.time()
    with torch.no_grad():
        token = model(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]], device=arguments.device)).logits[0, -1].argmax().item()
    end = time.time()
    print(f"imports {imported - begin:.2f} s, loading {loaded - imported:.2f} s, first token {end - loaded:.2f} s "
          f"(token {token}); whole {end - begin:.2f} s")


if __name__ == "__main__":
    main()

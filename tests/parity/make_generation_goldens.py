#!/usr/bin/env python3
"""What transformers makes of given logits: goldens for src/generate.

  make_generation_goldens.py OUT_DIR    writes sampler.json and beams.json

sampler.json: the scores that its logits processors leave, in the order generate() applies them.
beams.json: greedy and beam search over a scripted model whose logits are first[last token] + second[token before].
Needs torch and transformers.
"""
import json
import pathlib
import random
import sys

import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class ScriptedConfig(PretrainedConfig):
    model_type = "scripted"

    def __init__(self, vocab_size=8, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.num_hidden_layers = 1


class Scripted(PreTrainedModel, GenerationMixin):
    config_class = ScriptedConfig
    _supports_cache_class = False

    def __init__(self, config, first, second):
        super().__init__(config)
        self.first, self.second = first, second
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(self, input_ids, **_):
        before = torch.cat([torch.zeros_like(input_ids[:, :1]), input_ids[:, :-1]], dim=1)
        return CausalLMOutput(logits=self.first[input_ids] + self.second[before])


def rounded(tensor):
    """Three decimals, so that the file stays small and every reader gets the same floats."""
    return torch.tensor([round(x, 3) for x in tensor.flatten().tolist()], dtype=torch.float32).reshape(tensor.shape)


def listed(tensor):
    return [[round(x, 3) for x in row] for row in tensor.tolist()]


def sampler_cases():
    generator = torch.Generator().manual_seed(1)
    model = Scripted(ScriptedConfig(), torch.zeros(8, 8), torch.zeros(8, 8))
    for case in range(120):
        vocab = [16, 50, 120, 300][case % 4]
        logits = rounded(torch.randn(1, vocab, generator=generator) * [1.0, 4.0, 10.0][case % 3])
        if case % 10 == 9:
            logits = (logits * 2).round() / 2  # many ties
        seen = torch.randint(0, vocab, (1, 7), generator=generator)
        pick = random.Random(case)
        options = {
            "temperature": pick.choice([1.0, 0.5, 0.7, 1.5]), "top_k": pick.choice([0, 1, 5, 50, 280]),
            "top_p": 1.0 if case % 10 == 9 else pick.choice([1.0, 0.95, 0.5, 0.1, 0.999]),
            "min_p": pick.choice([0.0, 0.05, 0.3]), "repetition_penalty": pick.choice([1.0, 1.2, 2.0, 0.8]),
        }
        config = GenerationConfig(do_sample=True, **options)
        processors = model._get_logits_processor(config, input_ids_seq_length=7)
        scores = processors(seen, logits.clone())[0]
        kept = [i for i, s in enumerate(scores.tolist()) if s != float("-inf")]
        yield {"logits": listed(logits)[0], "seen": seen[0].tolist(), **options, "kept": kept,
               "scores": [round(scores[i].item(), 5) for i in kept]}


def beam_cases(generator):
    for case in range(150):
        pick = random.Random(1000 + case)
        vocab = pick.choice([6, 9, 14])
        scale = pick.choice([1.0, 3.0])
        first, second = (rounded(torch.randn(vocab, vocab, generator=generator) * scale) for _ in range(2))
        eos = pick.choice([[], [1], [1], [1, 2]])
        if eos and pick.random() < 0.5:
            first[:, 1] += 2
            first = rounded(first)
        options = {
            "num_beams": pick.choice([1, 2, 3, 5]), "length_penalty": pick.choice([1.0, 0.0, 0.5, 2.0, -1.0]),
            "early_stopping": pick.random() < 0.5, "max_new_tokens": pick.choice([1, 2, 5, 12]),
            "repetition_penalty": pick.choice([1.0, 1.0, 1.3]),
        }
        prompts = [[pick.randrange(3, vocab) for _ in range(length)] for length in (1, 3, 6)]
        model = Scripted(ScriptedConfig(vocab_size=vocab), first, second)
        outputs = []
        for prompt in prompts:
            config = GenerationConfig(do_sample=False, use_cache=False, eos_token_id=eos or None, pad_token_id=0, **options)
            outputs.append(model.generate(torch.tensor([prompt]), generation_config=config)[0].tolist())
        yield {"first": listed(first), "second": listed(second), "eos_token_id": eos, **options, "prompts": prompts,
               "sequences": outputs}


def write(path, cases):
    cases = list(cases)
    path.write_text("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n")
    print(path.name, len(cases), "cases,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1])
    write(out / "sampler.json", sampler_cases())
    write(out / "beams.json", beam_cases(torch.Generator().manual_seed(2)))

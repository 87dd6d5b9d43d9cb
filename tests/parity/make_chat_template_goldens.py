#!/usr/bin/env python3
"""Renders chat templates with jinja2 exactly as transformers does.

  make_chat_template_goldens.py OUT.json             templates written for the tests (chat_template_cases.py): the goldens
  make_chat_template_goldens.py --compare FOLDER BIN every template found in FOLDER, against the program BIN

FOLDER holds *.jinja files, JSON files with templates in "chat_template" keys and Python files with templates in string
literals. BIN reads one JSON object {"template", "context"} a line and answers {"ok", "text"} a line
(tests/parity/render_chat_template.cpp). Needs transformers and jinja2.
"""
import ast
import itertools
import json
import pathlib
import subprocess
import sys

from transformers.utils.chat_template_utils import _compile_jinja_template

from chat_template_cases import CASES, CONTEXTS


def render(template, context):
    """The text, or None where jinja2 raises."""
    try:
        # The round trip gives the template its own objects, as transformers does.
        return _compile_jinja_template(template).render(**json.loads(json.dumps(context))), None
    except Exception as error:  # any: undefined use, type errors, raise_exception
        return None, f"{type(error).__name__}: {error}"


def write_goldens(path):
    cases = []
    for context, templates in CASES.items():
        for template in templates:
            text, error = render(template, CONTEXTS[context])
            cases.append({"template": template, "context": context, "fails": text is None, "rendered": text or ""})
            if error:
                print(f"fails as expected? {template!r}: {error}")
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    contexts = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in CONTEXTS.items())
    path.write_text('{"contexts": {\n%s\n},\n"cases": [\n%s\n]}\n' % (contexts, lines))
    print(len(cases), "cases")


def templates_in_json(value):
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "chat_template" and isinstance(item, str):
                yield item
            else:
                yield from templates_in_json(item)
    elif isinstance(value, list):
        for item in value:
            yield from templates_in_json(item)


def find_templates(folder):
    found = {}
    for path in sorted(folder.rglob("*")):
        try:
            text = path.read_text()
        except (UnicodeDecodeError, IsADirectoryError):
            continue
        name = str(path.relative_to(folder))
        if path.suffix == ".jinja":
            found.setdefault(text, name)
        elif path.suffix == ".json":
            for i, template in enumerate(templates_in_json(json.loads(text))):
                found.setdefault(template, f"{name}#{i}")
        elif path.suffix == ".py":
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "{%" in node.value and "messages" in node.value:
                    found.setdefault(node.value, f"{name}:{node.lineno}")
    return found


def all_contexts():
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    chats = {k: v for k, v in CONTEXTS.items() if "messages" in v}
    for (name, chat), prompt in itertools.product(chats.items(), (False, True)):
        yield f"{name}{'+prompt' if prompt else ''}", {**tokens, **chat, "add_generation_prompt": prompt}


def compare(folder, program):
    templates = find_templates(folder)
    jobs = [(name, which, template, context) for template, name in templates.items() for which, context in all_contexts()]
    answers = subprocess.run([program], input="".join(json.dumps({"template": t, "context": c}) + "\n" for _, _, t, c in jobs),
                             capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(answers) == len(jobs), (len(answers), len(jobs))
    same = both_fail = 0
    wrong_templates, shown = set(), 0
    for (name, which, template, context), line in zip(jobs, answers):
        text, error = render(template, context)
        answer = json.loads(line)
        if text is None and not answer["ok"]:
            both_fail += 1
        elif answer["ok"] and text == answer["text"]:
            same += 1
        else:
            wrong_templates.add(name)
            if shown < 40:
                shown += 1
                print(f"--- {name} [{which}]\n  jinja2: {error or text!r:.300}\n  nibble: {answer['text']!r:.300}")
    print(f"{len(templates)} templates, {len(jobs)} renderings: {same} the same text, {both_fail} refused by both, "
          f"{len(jobs) - same - both_fail} different, in {len(wrong_templates)} templates: {sorted(wrong_templates)}")
    return 1 if wrong_templates else 0


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--compare":
        sys.exit(compare(pathlib.Path(sys.argv[2]), sys.argv[3]))
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write_goldens(pathlib.Path(sys.argv[1]))

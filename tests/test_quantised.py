"""The recipes of docs/serve.md for other quantisers and runtimes, run as they stand there."""

from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import transformers as t
from engines import python_of, run
from pages import blocks

import cfsp
from cfsp.checkpoints.load import REFERENCE
from cfsp.plans.plan import Cut, PrunePlan

pytestmark = pytest.mark.engines

PAGE = (Path(__file__).parents[1] / "docs" / "serve.md").read_text()
TOKENS = 256

BEFORE = """
import json, torch, transformers
expected = torch.load("expected.pt")
def logits_of(model):
    with torch.no_grad():
        return model(expected["ids"]).logits.float()
at_saving = {}
def noting(model, folder, **options):
    at_saving[folder] = logits_of(model)
    model.save_pretrained(folder, **options)
"""
AFTER = """
found = {}
for folder, logits in at_saving.items():
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    apart = (logits - expected["logits"]).abs().max().item()
    agreeing = (logits.argmax(-1) == expected["logits"].argmax(-1)).float().mean().item()
    found[folder] = [apart, agreeing, torch.equal(logits_of(again), logits)]
print()
print(json.dumps(found))
"""


def recipe(*words):
    """The Python blocks of the page that hold these words, one after the other; what they save is noted."""
    shown = [text for language, text in blocks(PAGE) if language == "python"]
    text = "\n".join(next(text for text in shown if word in text) for word in words)
    return text.replace("model.save_pretrained(", "noting(model, ")


@torch.no_grad()
def save_pruned(place, odd):
    """Save the embedded model with uneven blocks, and the logits of a text. odd: no group fits."""
    model, tokenizer = cfsp.load("reference")
    edits = []
    for at, site in enumerate(cfsp.find_sites(model, ["mlp", "attention"])):
        less = (1 if odd else site.units // 4) * (1 + at % 3)
        if "attention" in site.name:
            less = {0: 1 if odd else 2}.get(at // 2, 0)
        edits.append(Cut(site.name, site.units, tuple(range(site.units - less))))
    plan = PrunePlan(tuple(edits))
    cfsp.apply(plan, model)
    cfsp.save(place / "my" / "smaller_model", model, tokenizer, plan)
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = t.AutoTokenizer.from_pretrained(REFERENCE)(text, return_tensors="pt")["input_ids"][:, :TOKENS]
    torch.save({"ids": ids, "logits": model(ids).logits}, place / "expected.pt")


RECIPES = {
    "torchao": ("quantisers", {"my/int8": (0.6, 0.97), "my/int4": (6, 0.6)}),
    "llmcompressor": (
        "llmcompressor",
        {"my/W8A8": (3, 0.8), "my/FP8_DYNAMIC": (3, 0.8), "my/W4A16": (6, 0.5)},
    ),
    "BitsAndBytes": ("quantisers", {"my/nf4": (6, 0.6), "my/eight": (1.2, 0.9)}),
}
"""Tool -> environment, and what it saves -> largest difference of logits, least share of equal tokens."""


@pytest.mark.parametrize("tool", RECIPES)
def test_a_recipe_quantises_and_what_it_saves_loads_exactly(tool, tmp_path):
    environment, bounds = RECIPES[tool]
    python = python_of(environment)
    save_pruned(tmp_path, odd=False)
    found = run(python, BEFORE + recipe(tool) + AFTER, folder=tmp_path)
    print(tool, found)
    assert {*found} == {*bounds}
    for folder, (most, least) in bounds.items():
        apart, agreeing, exact = found[folder]
        assert 0 < apart < most, folder
        assert agreeing > least, folder
        assert exact, folder


ODD = {
    "torchao": ("quantisers", ["my/int8"], "issues during automatic conversion of the weights"),
    "llmcompressor": ("llmcompressor", ["my/W8A8", "my/FP8_DYNAMIC"], "not divisible by group_size"),
    "BitsAndBytes": ("quantisers", ["my/nf4", "my/eight"], None),
}
"""Tool -> environment, what it saves of odd widths, and what it says of the rest."""


@pytest.mark.parametrize("tool", ODD)
def test_odd_widths_are_taken_or_refused_as_the_page_says(tool, tmp_path):
    environment, saved, error = ODD[tool]
    python = python_of(environment)
    save_pruned(tmp_path, odd=True)
    guarded = "".join(f"    {line}\n" for line in recipe(tool).splitlines())
    script = (
        "import traceback\nsaid = ''\ntry:\n"
        + guarded
        + "except Exception:\n    said = traceback.format_exc()\n"
    )
    after = AFTER.replace("print(json", "found['said'] = said\nprint(json")
    found = run(python, BEFORE + script + after, folder=tmp_path)
    said = found.pop("said")
    assert [*found] == saved
    assert all(exact for _, _, exact in found.values())
    assert (error in said) if error else not said


RUNTIMES = """
small = expected["ids"][:, :57]
found = {}
for name, compute in {
    "onnxruntime": lambda ids: session.run(None, {"input_ids": ids.numpy()})[0],
    "openvino": lambda ids: openvino.compile_model("small.xml", "CPU")(ids.numpy())[0],
    "torch.export": lambda ids: graph.module()(ids).detach(),
}.items():
    whole = [torch.as_tensor(compute(ids)) for ids in (expected["ids"], small)]
    found[name] = [(one - expected["logits"][:, : one.shape[1]]).abs().max().item() for one in whole]
print()
print(json.dumps(found))
"""


def test_onnx_and_openvino_compute_the_same_at_any_length(tmp_path):
    python = python_of("quantisers")
    save_pruned(tmp_path, odd=True)
    shown = recipe("torch.onnx.export", "import onnxruntime", "import openvino")
    found = run(python, BEFORE + shown + RUNTIMES, folder=tmp_path)
    print(found)
    assert max(map(max, found.values())) < 1e-4

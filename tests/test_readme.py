"""What the README shows works as it stands there."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from families import batches, make
from omegaconf import OmegaConf

import cfsp
from cfsp.build import CONF, build
from cfsp.layouts import LAYOUTS

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """The one code block of a language that contains this."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    (found,) = [code for code in blocks if containing in code]
    return found


def test_python_api(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(block("python", "cfsp.plan(").replace("samples=128", "samples=8"), namespace)
    ids = torch.tensor([[5, 6, 7]])
    assert namespace["model"].generate(ids, max_new_tokens=4, min_new_tokens=4).shape == (1, 7)
    assert cfsp.PrunePlan.load("my_plan").edits
    assert set(namespace["stats"]["model.layers.0.mlp"]) == {"input_sq_mean", "block_angular"}


def test_new_criterion(monkeypatch):
    module = types.ModuleType("cfsp.criteria.ratio")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(block("python", "class Ratio(Criterion)"), module.__dict__)
    monkeypatch.setattr("cfsp.criteria.ratio", module, raising=False)
    criterion = build(OmegaConf.create(block("yaml", "Ratio")))
    model = make("qwen2")
    before = model.num_parameters()
    cfsp.apply(cfsp.plan(model, batches(), kinds=["mlp", "attention"], criterion=criterion), model)
    assert model.num_parameters() < before


def test_layout_example_is_the_shipped_one():
    namespace = {}
    exec("from cfsp.layouts import Layout, Place\n" + block("python", "LLAMA = Layout("), namespace)
    assert namespace["LLAMA"] == LAYOUTS["llama"]


@pytest.mark.parametrize(
    "group", ["criterion", "allocator", "schedule", "compensation", "calibration", "recovery", "evaluation"]
)
def test_option_table_names_every_choice(group):
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{group}`")]
    for path in (CONF / group).glob("*.yaml"):
        assert f"`{path.stem}`" in row

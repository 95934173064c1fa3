"""Checkpoints for other environments: saved here, with what this process computed beside them."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from families import make
from plans import ones_for, random_plan

import cfsp
from cfsp.checkpoints.saved_classes import auto_class

PLACE = Path(os.environ.get("CFSP_TEST_ENGINES", ".engines"))
"""A folder of virtual environments, which `make test-engines` and `make test-vllm` make."""


def python_of(name):
    """The Python of an environment; skips the test where it has not been made."""
    python = (PLACE / name / "bin" / "python").absolute()
    if not python.exists():
        pytest.skip(f"there is no environment {python.parent.parent}: make test-engines, make test-vllm")
    return python


def run(python, script, *arguments, folder, **variables):
    """Run a script in a process without cfsp and without a network. Returns the JSON of its last line."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules"), "HOME": str(folder)}
    environment |= {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [str(python), "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment | variables,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def saved(folder, model, plan, tokenizer):
    """Save a model, and in `expected.pt` what it computes from a few tokens."""
    cfsp.save(folder, model, tokenizer, plan)
    tokens = {"input_ids": torch.arange(2, 42).view(2, 20)}
    made = model(**tokens)
    hidden = model.base_model(**tokens)[0]
    expected = {"tokens": tokens, "logits": made.logits, "hidden": hidden}
    torch.save(expected | {"head": auto_class(type(model).__name__)}, folder / "expected.pt")


def cut(family, kinds, fill=False, emptied=()):
    """A pruned model and its plan; the sites whose name ends in one of `emptied` lose all units."""
    model = family() if callable(family) else make(family)
    sites = cfsp.find_sites(model, kinds)
    fills = {site.name: ones_for([site])[site.name] if fill else None for site in sites}
    edits = random_plan(sites, fills=fills).edits
    plan = cfsp.PrunePlan(
        tuple(
            cfsp.Cut(edit.site, edit.units, () if edit.site.endswith(emptied) else edit.keep, edit.fill)
            if emptied
            else edit
            for edit in edits
        )
    )
    cfsp.apply(plan, model)
    return model, plan

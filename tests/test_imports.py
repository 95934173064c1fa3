"""Packages that are slow to import come where they are used, and every one that is imported is declared."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cfsp

ROOT = Path(__file__).parent.parent
HEAVY = {"wandb", "lm_eval", "matplotlib", "peft", "pandas"}
PLAN = """
import cfsp
from families import batches, make

plan = cfsp.plan(make("llama"), batches(count=1), sparsity=0.5)
assert plan.edits
"""
NAMES = {"hydra": "hydra-core", "rouge_score": "rouge-score", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Module -> the package that holds it, where the two have different names."""
OWN = {"cfsp", "hydra_plugins"}


def modules_after(code: str, *arguments: str) -> set[str]:
    """The top-level modules that a fresh process has after some code, however it ends."""
    begin = f"import sys, atexit; sys.argv[1:] = {arguments!r}; sys.path.append({str(ROOT / 'tests')!r})"
    at_exit = "atexit.register(lambda: print('\\n!', *{name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{begin}\n{at_exit}\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {*done.stdout.rpartition("!")[2].split()}


@pytest.mark.slow
def test_a_plan_needs_no_package_that_only_others_need():
    there = modules_after(PLAN)
    assert "torch" in there
    assert not HEAVY & there


def test_importing_the_package_needs_nothing_else():
    assert not ({"torch", "transformers", "hydra", "numpy"} | HEAVY) & modules_after("import cfsp")


def test_help_needs_no_torch():
    there = modules_after("from cfsp.cli.main import main; main()", "--help")
    assert "hydra" in there
    assert not ({"torch", "transformers", "numpy"} | HEAVY) & there


def test_type_checkers_see_the_public_names():
    tree = ast.parse((ROOT / "cfsp" / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname: node.module for node in imports for alias in node.names} == cfsp._HOMES


def imported(folder: Path) -> set[str]:
    """The top-level modules that the files of a folder import, at their head or inside functions."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    return found - OWN - {"triton"} - sys.stdlib_module_names  # triton comes with torch where there is a GPU


def packages(requirements: list[str]) -> set[str]:
    """The names of what is required, as registries write them."""
    return {
        re.match(r"[\w.-]+", one)[0].lower().replace("_", "-")
        for one in requirements
        if not one.startswith("#")
    }


def test_every_imported_package_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = packages(project["dependencies"])
    extras = project["optional-dependencies"]
    optional = packages([one for extra in extras.values() for one in extra])
    exporting = required | packages(extras["gguf"])  # imported by the export of that name
    for folder, declared in (("cfsp", exporting), ("hydra_plugins", required | optional)):
        names = {NAMES.get(name, name.replace("_", "-")) for name in imported(ROOT / folder)}
        assert len(names) >= 2
        assert not names - declared, f"{folder} imports what pyproject.toml does not declare"


def test_every_declared_package_has_its_version_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = packages((ROOT / "requirements.lock").read_text().splitlines())
    assert not packages(project["dependencies"]) - locked
    assert not packages(project["optional-dependencies"]["dev"]) - locked - OWN

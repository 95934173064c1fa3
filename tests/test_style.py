"""No function is too long to see at once, and no file too long to know."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FUNCTION, FILE = 40, 300
"""Most lines of a function, its docstring among them, and of a file."""
PATHS = sorted(path for folder in ("cfsp", "hydra_plugins") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_and_no_file_is_long(path):
    text = path.read_text()
    assert len(text.splitlines()) <= FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION, f"{node.name} has {lines} lines"


MODULES = {
    "base": "each package has one",
    "cache": "the cache, and the command for it",
    "cfsp": "the method's criterion and its allocator",
    "compare": "of records as tables, and the command for models",
    "latency": "the evaluator, and its plot",
    "none": "no compensation, no recovery",
    "push": "the push, and the command for it",
    "quality": "the section of a page, and its plot",
}
"""Names that modules share -> why: they are of one thing."""

NAMES = {
    "CFSP": "the method's criterion and its allocator",
    "apply": "the step, and its public face",
    "load": "the step, and the stage of a run",
    "main": "each command has one",
    "parser": "each command has one",
    "plan": "the step's public face, and the stage of a run",
    "save": "the step, and its public face",
}
"""Names that classes and functions share -> why: they are of one thing."""


def shared(named):
    """Names that stand in more than one file."""
    return {name for name, count in Counter(named).items() if count > 1}


def test_modules_share_no_name_for_different_things():
    assert shared(path.stem for path in PATHS if path.stem != "__init__") == set(MODULES)


def test_classes_and_functions_share_no_name_for_different_things():
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    trees = [ast.parse(path.read_text()) for path in PATHS]
    assert shared(node.name for tree in trees for node in tree.body if isinstance(node, kinds)) == set(NAMES)

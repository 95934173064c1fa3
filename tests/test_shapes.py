"""Every public function that returns a tensor says in its docstring which axes it has."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "cfsp"
SHAPE = re.compile(r"\[[^\]\n]*\]")


def returning_tensors(tree: ast.Module) -> list[tuple[str, ...]]:
    """The names, from the module down, of public functions and methods whose annotation has Tensor."""
    found = []
    for node in tree.body:
        inner = [(node.name, one) for one in node.body] if isinstance(node, ast.ClassDef) else [(None, node)]
        for owner, one in inner:
            if isinstance(one, ast.FunctionDef) and one.returns and "Tensor" in ast.unparse(one.returns):
                names = tuple(name for name in (owner, one.name) if name)
                found += [] if any(re.match(r"_(?!_)", name) for name in names) else [names]
    return found


CASES = {
    ".".join(("cfsp", *path.relative_to(ROOT).with_suffix("").parts)): names
    for path in sorted(ROOT.rglob("*.py"))
    if (names := returning_tensors(ast.parse(path.read_text())))
}


def test_there_are_such_functions():
    assert sum(map(len, CASES.values())) > 60


@pytest.mark.parametrize("module", CASES)
def test_shapes_are_told(module):
    """A method that a class takes over without a word has the docstring of the one above it."""
    for names in CASES[module]:
        found = import_module(module)
        for name in names:
            found = inspect.getattr_static(found, name)
        if isinstance(found, property):
            found = found.fget
        told = inspect.getdoc(inspect.unwrap(getattr(found, "__func__", found))) or ""
        assert SHAPE.search(told), f"{module}.{'.'.join(names)} does not say what shape it returns"

"""No function is too long to see at once, and no file too long to know."""

import ast
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

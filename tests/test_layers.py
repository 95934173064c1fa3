"""No module imports against the layers of the design; only the named files import the named packages."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "cfsp"
ROWS = [
    {"bars", "checks", "machine", "options", "storage"},
    {"model"},
    {"data", "passes", "plans", "records"},
    {"checkpoints", "statistics", "training"},
    {"allocators", "compensation", "criteria", "evaluation", "exports", "loggers", "recovery", "tables"},
    {"report", "schedules"},
    {"running"},
    {"api", "cli"},
    {"__main__", "__init__"},
]
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
HARNESS = [f"evaluation/{path.name}" for path in (ROOT / "evaluation").glob("harness*.py")]
ONLY_IN = {
    "hydra": ("running", "cli"),
    "datasets": ("data/rows.py", *HARNESS, "evaluation/local_splits.py"),
    "pandas": ("tables", "cli/tables.py"),
    "rich": ("running/summary.py", "cli"),
    "wandb": ("loggers/wandb.py",),
    "peft": ("training/lora.py",),
    "matplotlib": ("report",),
    "lm_eval": HARNESS,
    "gguf": ("exports", "checkpoints/gguf_input.py"),
    "tqdm": ("bars.py",),
    "rouge_score": ("data/tasks/rouge.py",),
    "sklearn": ("data/tasks/metrics.py",),
    "scipy": ("data/tasks/metrics.py", "tables/paired.py"),
}
"""Package -> the only files and folders that import it."""
MODULES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"cfsp.{alias.name}" for alias in node.names] if node.module == "cfsp" else [node.module]
            found += names
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layers(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    for name in imports(path):
        package = name.split(".")[0]
        if package in ONLY_IN:
            allowed = [ROOT / place for place in ONLY_IN[package]]
            assert {path, *path.parents} & {*allowed}, f"{path} imports {package}"
        if package != "cfsp":
            continue
        target = name.split(".")[1:]
        if len(parts) == 1 or target[0] != parts[0]:
            assert ROW[target[0]] < ROW[parts[0]], f"{path} imports {name} against the layers"


def test_every_module_has_a_row():
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in MODULES} == set(ROW)


def test_no_module_imports_itself_by_way_of_others():
    known = {".".join(("cfsp", *path.relative_to(ROOT).with_suffix("").parts)): path for path in MODULES}
    left = {name: {one for one in imports(path) if one in known} for name, path in known.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other in a circle: {sorted(left)}"

"""The documentation: links lead somewhere, commands and code work, generated parts are as the code is."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import blocks, call, commands, is_far, of, tiny, tiny_arguments, understood

from cfsp.cli import cache, report, tables
from cfsp.cli.main import main
from cfsp.schedules import latency_table
from cfsp.statistics.collect import STATISTICS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
LINES = list(dict.fromkeys(line for page in PAGES.values() for line in commands(page)))
INLINE = sorted(
    {
        line
        for page in PAGES.values()
        for line in re.findall(r"^\|.*?`(cfsp [^`]+=[^`]+)`", page, flags=re.MULTILINE)
    }
)
"""Commands in tables, which are to be copied too."""

WALKED = ["start.md", *(page for page in PAGES if page.startswith("extend/") and page != "extend/index.md")]


def without_code(page: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", page, flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """What headings are called on a forge; where mkdocs has another name for one, neither."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
        if words.isascii() and not re.search(r"[-\s]{2}", words):
            found.add(words.replace(" ", "-"))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", without_code(PAGES[name])):
        target = (DOCS / name).parent / link if link else DOCS / name
        assert target.is_file(), f"{name}: {link}"
        assert not anchor or anchor in anchors(target.read_text()), f"{name}: {link}#{anchor}"


@pytest.mark.parametrize("name", PAGES)
def test_pages_read_as_plain_markdown(name):
    """A forge shows the syntax of plugins as rubbish; a page begins with its title."""
    text = without_code(PAGES[name])
    assert PAGES[name].startswith("# ")
    assert not re.search(r"^(!!!|\?\?\?|===|:::|\[TOC\])|\{[:.#%]|\{\{", text, flags=re.MULTILINE)


@pytest.mark.parametrize("group", ["criterion", "allocator", "compensation", "schedule", "recovery"])
def test_every_choice_has_a_page(group):
    names = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
    assert names == {path.stem for path in (DOCS / "methods" / group).glob("*.md")}
    for name in names:
        page = PAGES[f"methods/{group}/{name}.md"]
        for heading in ("Formula", "Cost", "Figures", "When it loses"):
            assert f"## {heading}\n" in page, f"{name}: {heading}"
        assert re.search(r"^Papers?( and codes?)?:", page, flags=re.MULTILINE), name


FIRST = {line for page in PAGES.values() for line in commands(page)[:2]}
"""The first two commands of every page: most commands of a page are much alike."""


def is_slow(line: str) -> bool:
    """Whether a command is like an earlier one, or builds tasks of lm-eval, which takes many seconds."""
    return line not in FIRST or "zero_shot.tasks" in line


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=[pytest.mark.slow] if is_slow(line) else [])
        for line in [*of("cfsp", LINES), *INLINE]
        if "--config-dir" not in line
    ],
)
def test_commands_are_understood(line, desk):
    assert understood(line).method.criterion


def near(name: str) -> list[str]:
    return [line for line in of("cfsp", commands(PAGES[name])) if not is_far(line)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [line for name in ("models.md", "evaluate.md", "tasks.md", "sweeps.md") for line in near(name)]
)
def test_commands_run(line, desk, monkeypatch, capsys):
    # A model so small takes no less time without half of its units, so the clock counts parameters.
    weights = property(lambda self: sum(one.numel() for one in self.model.parameters()))
    monkeypatch.setattr(latency_table.Pass, "seconds", weights)
    assert call(monkeypatch, main, "cfsp", tiny_arguments(line)) == 0, capsys.readouterr().err
    assert [*desk.glob("results/records/*.json")]


@pytest.mark.slow
def test_commands_that_read_records_run(desk, monkeypatch, capsys):
    sweep = ["-m", "criterion=cfsp,flap", "sparsity=0.3,0.5", "allocator=uniform", *tiny("")]
    assert call(monkeypatch, main, "cfsp", sweep) == 0
    for name, module in (("cfsp-tables", tables), ("cfsp-report", report), ("cfsp-cache", cache)):
        assert of(name, LINES)
        for line in of(name, LINES):
            words = shlex.split(line)[1:]
            if "--papers" not in words and "repetition" not in words:
                assert call(monkeypatch, module.main, name, words) == 0, (line, capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("name", WALKED)
def test_a_reader_can_walk_a_page(name, desk, monkeypatch, capsys):
    """Do what a page says from its top: write the files that it shows, run its commands and its code."""
    monkeypatch.syspath_prepend(str(desk))
    (desk / "my_pruning").mkdir()
    namespace: dict = {}
    try:
        for language, text in blocks(PAGES[name]):
            place = re.match(r"# (\S+\.(?:py|yaml))\n", text)
            if place:
                (desk / place[1]).parent.mkdir(parents=True, exist_ok=True)
                (desk / place[1]).write_text(text)
            elif language == "python":
                exec(compile(text, name, "exec"), namespace)
            elif language == "sh":
                for line in of("cfsp", commands(f"```sh\n{text}```")):
                    assert call(monkeypatch, main, "cfsp", own_arguments(line)) == 0, capsys.readouterr().err
                for line in of("cfsp-tables", commands(f"```sh\n{text}```")):
                    assert call(monkeypatch, tables.main, "cfsp-tables", shlex.split(line)[1:]) == 0
    finally:
        for module in [module for module in sys.modules if module.split(".")[0] == "my_pruning"]:
            del sys.modules[module]


def own_arguments(line: str) -> list[str]:
    """`tiny_arguments`, without what only the training of cfsp's own recoveries has."""
    own = "--config-dir" in line
    return [word for word in tiny_arguments(line) if not (own and word.startswith("recovery."))]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_as_the_code_is(generate):
    stale = [path.name for path, text in generate.pages().items() if path.read_text() != text]
    assert not stale, f"{', '.join(stale)}: run `python docs/generate.py`"


def test_the_drawing_is_as_its_script_draws_it():
    spec = importlib.util.spec_from_file_location("data_path", DOCS / "data_path.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "data_path.svg").read_text() == module.drawing()


def test_the_page_of_criteria_has_every_statistic():
    listed = set(re.findall(r"`((?:input|relative|output|block|taylor)_\w+)`", PAGES["extend/criterion.md"]))
    ours = {name for name, kind in STATISTICS.items() if kind.__module__.startswith("cfsp.")}
    assert ours <= listed


def test_every_page_is_in_the_map():
    listed = set(re.findall(r"\]\(([^)]+\.md)\)", (DOCS / "llms.txt").read_text()))
    assert listed == set(PAGES)


def test_every_option_has_a_meaning(generate):
    rows = re.findall(
        r"^\| `([^`]+)` \| `.*?` \| *(.*?) *\|$", PAGES["reference/config.md"], flags=re.MULTILINE
    )
    silent = sorted({name for name, meaning in rows if not meaning})
    assert len(rows) > 150
    assert not silent


def test_mkdocs_builds(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed; `make docs` installs it")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/repository/results/tables/recovery/index.html").is_file()

"""The README: short, and what it shows works as it stands there."""

import re
from pathlib import Path

import pytest
from pages import blocks, call, commands, of, tiny, tiny_arguments

from cfsp.cli import report, tables
from cfsp.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LINES = commands(README)


def test_it_is_short():
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize("line", of("cfsp", LINES))
def test_commands_run(line, desk, monkeypatch, capsys):
    assert call(monkeypatch, main, "cfsp", tiny_arguments(line)) == 0, capsys.readouterr().err
    assert [*desk.glob("results/records/*.json")]


def test_commands_of_tables_run(desk, monkeypatch, capsys):
    rows = re.findall(r"^\|.*\| (`cfsp .*) \|$", README, flags=re.MULTILINE)
    lines = [line for row in rows for line in re.findall(r"`(cfsp [^`]*)`", row)]
    assert len(lines) > 6
    for line in lines:
        assert call(monkeypatch, main, "cfsp", [*tiny_arguments(line), "--cfg", "job"]) == 0, (
            line,
            capsys.readouterr().err,
        )


def test_commands_that_read_records_run(desk, monkeypatch, capsys):
    sweep = ["-m", "criterion=cfsp,flap", "sparsity=0.3,0.5", "allocator=uniform", *tiny("")]
    assert call(monkeypatch, main, "cfsp", sweep) == 0
    for name, module in (("cfsp-tables", tables), ("cfsp-report", report)):
        (line,) = of(name, LINES)
        assert call(monkeypatch, module.main, name, line.split()[1:]) == 0, capsys.readouterr().err


def test_a_saved_model_generates_as_shown(desk, monkeypatch, capsys):
    (line,) = [line for line in LINES if "save=my/smaller_model" in line]
    assert call(monkeypatch, main, "cfsp", tiny_arguments(line)) == 0, capsys.readouterr().err
    (code,) = [text for language, text in blocks(README) if language == "python"]
    exec(code, {})
    assert "Return a list of" in capsys.readouterr().out


def test_relative_links_of_all_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("experiments/*/README.md"), *ROOT.glob("results/**/*.md")]:
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"

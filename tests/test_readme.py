"""The README: short, and what it shows works as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
from pages import blocks, call, commands, of, tiny_arguments

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
    assert [*desk.rglob("results/records/*.json")]


@pytest.mark.slow
def test_commands_of_tables_run(desk, monkeypatch, capsys):
    rows = re.findall(r"^\|.*\| (`cfsp .*) \|$", README, flags=re.MULTILINE)
    lines = [line for row in rows for line in re.findall(r"`(cfsp [^`]*)`", row)]
    assert len(lines) > 6
    for line in lines:
        assert call(monkeypatch, main, "cfsp", [*tiny_arguments(line), "--cfg", "job"]) == 0, (
            line,
            capsys.readouterr().err,
        )


def test_the_block_on_one_s_own_model_works_from_top_to_bottom(desk, monkeypatch, capsys):
    (block,) = [text for language, text in blocks(README) if language == "sh" and "my/train" in text]
    pruned, swept, table, page = commands(f"```sh\n{block}```")
    assert call(monkeypatch, main, "cfsp", tiny_arguments(pruned)) == 0, capsys.readouterr().err
    assert (desk / "my/own_smaller_model/model.safetensors").is_file()
    few = [re.sub(r"^sparsity=.*", "sparsity=0.2,0.3", word) for word in tiny_arguments(swept)]
    few = [re.sub(r"^criterion=.*", "criterion=wanda_sp,cfsp", word) for word in few]
    assert call(monkeypatch, main, "cfsp", few) == 0, capsys.readouterr().err
    assert "4 jobs: 3 made, 1 read" in capsys.readouterr().out
    for line, module in ((table, tables), (page, report)):
        assert call(monkeypatch, module.main, shlex.split(line)[0], shlex.split(line)[1:]) == 0
    assert "perplexity/files:test.txt" in capsys.readouterr().out
    assert (desk / "my/report.html").is_file()


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

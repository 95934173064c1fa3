"""Every command of the README: those of one's own machine run, on a tiny model; the others build."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pages import call, commands, is_far, of, tiny, tiny_arguments, understood

from cfsp.build import CONF
from cfsp.cli import main
from cfsp.commands import cache, report, tables
from cfsp.record import run_id

README = (Path(__file__).parent.parent / "README.md").read_text()
LINES = commands(README)


@pytest.mark.parametrize("line", [line for line in of("cfsp", LINES) if is_far(line)])
def test_commands_for_other_machines_are_understood(line, desk):
    assert understood(line).evaluators


@pytest.mark.parametrize("line", [line for line in of("cfsp", LINES) if not is_far(line)])
def test_commands_run(line, desk, monkeypatch, capsys):
    assert call(monkeypatch, main, "cfsp", tiny_arguments(line)) == 0, capsys.readouterr().err
    if "--help" not in line:
        assert [*desk.glob("results/records/*.json")], capsys.readouterr().err


def test_commands_that_read_records_run(desk, monkeypatch, capsys):
    sweep = ["-m", "criterion=cfsp,flap", "sparsity=0.3,0.5", "allocator=uniform", *tiny("")]
    assert call(monkeypatch, main, "cfsp", sweep) == 0
    for name, module in (("cfsp-tables", tables), ("cfsp-report", report), ("cfsp-cache", cache)):
        assert of(name, LINES)
        for line in of(name, LINES):
            words = shlex.split(line)[1:]
            if "--papers" not in words:  # no paper has a figure on a model of ours; tests/test_papers.py
                assert call(monkeypatch, module.main, name, words) == 0, (line, capsys.readouterr().err)
    assert (desk / "all.html").stat().st_size > 10_000
    assert (desk / "tables.tex").read_text()
    assert [*(desk / "figures").glob("*.pdf")]


def test_scripts_that_the_readme_names_are_there():
    root = Path(__file__).parent.parent
    for line in README.splitlines():
        if line.startswith(("experiments/", "python experiments/")):
            assert (root / line.split()[line.startswith("python")]).is_file(), line


def test_the_demo_s_record_is_the_shipped_config_s():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config")
    assert f"results/records/{run_id(OmegaConf.to_container(config, resolve=True))}.json" in README


def test_relative_links_of_all_pages_lead_somewhere():
    root = Path(__file__).parent.parent
    for page in [*root.glob("*.md"), *root.glob("experiments/*/README.md"), *root.glob("results/**/*.md")]:
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"

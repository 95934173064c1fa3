"""Every command of the README: those of one's own machine run, on a tiny model; the others build."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cfsp.build import CONF
from cfsp.cli import main
from cfsp.commands import cache, report, tables
from cfsp.parts import Parts
from cfsp.record import run_id

README = (Path(__file__).parent.parent / "README.md").read_text()
FAR = ("meta-llama/", "submitit_slurm", "launcher=ray", "tasks=[boolq")
"""What names the hub, a cluster, or data that are not here."""

TINY = {
    "perplexity": ["window=32", "windows=4"],
    "latency": ["batch_sizes=[1]", "prompts=[8]", "new_tokens=2", "repeats=1"],
    "size": ["context=16"],
    "samples": ["new_tokens=2"],
}
"""Of evaluations, what makes them quick."""


def commands() -> list[str]:
    """The lines of all blocks without a language, comments taken off and continued lines joined."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(text for language, text in blocks if not language).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+# .*", "", line) for line in lines if line.startswith("cfsp")]


def of(name: str) -> list[str]:
    return [line for line in commands() if shlex.split(line)[0] == name]


@pytest.fixture
def desk(tmp_path, monkeypatch, tiny_checkpoint, text_file):
    """A folder with the files that the README speaks of."""
    mine = tmp_path / "my"
    shutil.copytree(tiny_checkpoint, mine / "model")
    (mine / "train").mkdir()
    words = text_file.read_text()
    (mine / "train" / "a.jsonl").write_text(f'{{"text": "{words}"}}\n')
    (mine / "test.txt").write_text(words)
    pair = '{"instruction": "Say yes", "input": "", "output": "yes"}'
    (mine / "alpaca.json").write_text(f"[{', '.join([pair] * 40)}]")
    rows = '{"goal": "eat", "sol1": "a pan", "sol2": "a pot", "label": 0}\n'
    (mine / "piqa.validation.jsonl").write_text(rows * 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny(line: str) -> list[str]:
    """More overrides that make a run small, and two jobs of a sweep."""
    own = (
        "model.path" in line or "instructions" in line
    )  # whose prompts are longer than the tiny model's context
    more = [] if own else ["model.path=my/model"]
    more += ["calibration.samples=6", "calibration.seqlen=16"]
    chosen = re.search(r"evaluation=\[?([a-z_,]+)", line)
    for name in chosen.group(1).split(",") if chosen else ["perplexity"]:
        more += [f"evaluation.{name}.{option}" for option in TINY.get(name.removesuffix("_text"), [])]
    if "recovery=" in line and "reconstruction" not in line:
        more += ["recovery.training.max_steps=2"]
    if "recovery=reconstruction" in line:
        more += ["recovery.steps=2"]
    if "recovery=" in line:
        window = 128 if "instructions" in line else 32
        more += [f"recovery.data.window={window}", "recovery.data.held_out=8", "recovery.data.limit=24"]
    if "+experiment=cfsp" in line or "round_to=" in line:
        more += ["allocator.round_to=8"]
    return more


def run(monkeypatch, entry, name: str, arguments: list[str]) -> int:
    """The exit code of a command in this process."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        return entry() or 0
    except SystemExit as end:
        return end.code or 0


@pytest.mark.parametrize("line", [line for line in of("cfsp") if any(word in line for word in FAR)])
def test_commands_for_other_machines_are_understood(line, desk):
    overrides = [word for word in shlex.split(line)[1:] if word not in ("-m", "--help")]
    single = [re.sub(r"=([\w.]+),[\w.,]+$", r"=\1", word) for word in overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [word for word in single if "hydra" not in word] + ["device=cpu"])
    assert Parts.of(config).evaluators


@pytest.mark.parametrize("line", [line for line in of("cfsp") if not any(word in line for word in FAR)])
def test_commands_run(line, desk, monkeypatch, capsys):
    arguments = shlex.split(line)[1:]
    if arguments != ["--help"]:
        arguments += tiny(line)
        # Of long sweeps two jobs are enough.
        arguments = [re.sub(r"^(seed=0|criterion=\w+),.*", r"\1", word) for word in arguments]
    assert run(monkeypatch, main, "cfsp", arguments) == 0, capsys.readouterr().err
    if arguments != ["--help"]:
        assert [*desk.glob("results/records/*.json")], capsys.readouterr().err


def test_commands_that_read_records_run(desk, monkeypatch, capsys):
    sweep = ["-m", "criterion=cfsp,flap", "sparsity=0.3,0.5", "allocator=uniform", *tiny("")]
    assert run(monkeypatch, main, "cfsp", sweep) == 0
    for name, module in (("cfsp-tables", tables), ("cfsp-report", report), ("cfsp-cache", cache)):
        assert of(name)
        for line in of(name):
            words = shlex.split(line)[1:]
            if "--papers" not in words:  # no paper has a figure on a model of ours; tests/test_papers.py
                assert run(monkeypatch, module.main, name, words) == 0, (line, capsys.readouterr().err)
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

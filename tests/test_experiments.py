"""Studies: every row of the papers' tables composes for real weights and runs on tiny ones."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cfsp.running.build import CONF, build, choices
from cfsp.running.run import run

ROOT = Path(__file__).parent.parent
ROWS = sorted(
    str(path.relative_to(CONF / "experiment").with_suffix(""))
    for path in (CONF / "experiment" / "paper").rglob("*.yaml")
)


def composed(row, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"+experiment={row}", *overrides])


def swept(row) -> dict[str, str]:
    """The values that one command goes through."""
    text = OmegaConf.load(CONF / "experiment" / f"{row}.yaml")
    return OmegaConf.to_container(text).get("hydra", {}).get("sweeper", {}).get("params", {})


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_for_real_weights_unless_told_otherwise(row):
    real, here = composed(row), composed(row, "setting=reference")
    assert real.device == "cuda"
    assert "llama" in real.model.path.lower()
    assert (here.device, here.model.path, [*here.evaluation]) == ("cpu", "reference", ["perplexity"])
    for part in ("criterion", "allocator", "schedule", "compensation"):
        assert real[part]._target_ == here[part]._target_
    assert (real.sites, real.sparsity_of) == (here.sites, here.sparsity_of)
    OmegaConf.to_container(real, resolve=True, throw_on_missing=True)
    for config in (real.calibration, *real.evaluation.values()):
        build(config)  # reads nothing yet


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("row", ROWS)
def test_every_row_runs(row, tiny_overrides, tmp_path):
    first = [f"{name}={values.split(',')[0]}" for name, values in swept(row).items()]
    rounding = ["allocator.round_to=8"] if "cfsp/cfsp" in row else []  # 128 is too wide here
    small = ["allocator.protect=[]", "sparsity_of=sites"]  # two blocks, and most of it embeddings
    record = run(
        composed(
            row, "setting=reference", *tiny_overrides(), *first, *small, *rounding, f"results={tmp_path}"
        )
    )
    assert record.sparsity["sites"] > 0


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("row", ROWS)
def test_a_row_can_be_of_the_real_model_for_the_cpu(row):
    here = composed(row, "setting=smollm2")
    assert here.device == "cpu"
    assert (here.model.path, [*here.evaluation]) == ("models/SmolLM2-135M-Instruct", ["perplexity_text"])
    for config in (here.calibration, *here.evaluation.values()):
        build(config)  # reads nothing yet


@pytest.mark.parametrize("row", ROWS)
def test_a_row_says_what_is_expected_and_what_it_costs(row):
    lines = (CONF / "experiment" / f"{row}.yaml").read_text().splitlines()
    head = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
    assert "arXiv:" in head
    assert "Expected" in head
    assert "Cost: " in head
    assert "estimate" in head  # no run of it is behind these files


@pytest.mark.parametrize("name", choices("setting"))
def test_every_setting_is_small_and_says_what_it_is(name):
    lines = (CONF / "setting" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    assert len(lines) < 16


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*/run.sh")), ids=lambda path: path.parent.name
)
def test_every_study_is_a_script_with_a_readme(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert (path.parent / "README.md").is_file()


def test_a_row_that_fails_holds_up_no_other(tmp_path):
    script = tmp_path / "experiments" / "paper_tables" / "run.sh"
    rows = tmp_path / "conf" / "experiment" / "paper" / "llm_pruner_20"
    programs = tmp_path / ".venv" / "bin"
    for folder in (script.parent, rows, programs):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "experiments" / "paper_tables" / "run.sh", script)
    for name, lines in {"cfsp": '[[ "$*" != *fails* ]]', "cfsp-tables": "true"}.items():
        (programs / name).write_text(f'#!/bin/bash\necho "{name} $*"\n{lines}\n')
        (programs / name).chmod(0o755)
    for row in ("fails", "works"):
        (rows / f"{row}.yaml").touch()
    run = ["bash", str(script), "llm_pruner_20"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["cfsp", "cfsp", "cfsp-tables"]
    assert "recovery" in done.stdout.splitlines()[-1]  # tuned and untuned rows share the folder
    assert done.returncode == 1
    (rows / "fails.yaml").unlink()
    assert subprocess.run(run, capture_output=True, check=False).returncode == 0


def test_the_scripts_of_an_ablation_calibrate_and_compare(tiny_overrides, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "experiments" / "coarse_vs_fine")
    import released
    import temperatures

    monkeypatch.setattr("sys.argv", ["temperatures.py", *tiny_overrides(), "cache=off"])
    temperatures.main()
    found = dict(part.split(":") for part in capsys.readouterr().out.strip("{}\n").split(","))
    assert found.keys() == {*temperatures.METRICS}
    assert float(found["angular"]) == temperatures.ANGULAR
    assert all(float(value) > 0 for value in found.values())
    table = released.agreement([*tiny_overrides(), "cache=off"])
    assert ((table.to_numpy(dtype=float) > 0) & (table.to_numpy(dtype=float) <= 1)).all()

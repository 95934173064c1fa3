"""Real models: every part of the study composes, and an unknown part is refused."""

import importlib.util
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from studies import record

from cfsp.running.build import CONF

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "experiments" / "real_models" / "run.sh"
FULL = "results/real_models_full/SmolLM2-135M-Instruct"
PLACES = dict.fromkeys("mlp both depth recovery latency zero_shot generation".split(), FULL) | {
    "published": "results/real_models/SmolLM2-135M-Instruct",
    "cost": "results/real_models_cost",
    "in_domain": "results/real_models_in_domain/SmolLM2-135M-Instruct",
    "in_domain_256": "results/real_models_in_domain_256/SmolLM2-135M-Instruct",
    "with_attention": "results/real_models_with_attention/SmolLM2-135M-Instruct",
}
"""Part -> where its records go."""


def commands(tmp_path, *arguments, script=SCRIPT):
    """The arguments of every `cfsp` that a part would run."""
    fake, log = tmp_path / "bin" / "cfsp", tmp_path / "log"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nfor one in "$@"; do printf "%s\\n" "$one" >> {log}; done\necho >> {log}\n')
    fake.chmod(0o755)
    (fake.parent / "python").symlink_to(shutil.which("true"))  # the table of runs that never were
    # A copy, because the script prefers the commands of the checkout that it lies in.
    copy = tmp_path / script.relative_to(ROOT)
    copy.parent.mkdir(parents=True)
    copy.write_text(script.read_text())
    path = f"{fake.parent}:{os.environ['PATH']}"
    done = subprocess.run(  # noqa: PLW1510  # its exit code is what is tested
        ["bash", str(copy), *arguments], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    found = log.read_text().strip().split("\n\n") if log.exists() else []
    return done, [one.splitlines() for one in found]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("part", PLACES)
def test_every_command_of_a_part_composes(part, tmp_path):
    check(commands(tmp_path, part, "seed=3"), PLACES[part])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("part", ["sources", "sizes", "written"])
def test_every_calibration_of_the_study_composes(part, tmp_path):
    script = ROOT / "experiments" / "calibration" / "run.sh"
    check(commands(tmp_path, part, "seed=3", script=script), "results/calibration")


def check(run, place):
    """Compose every command, each with the first of its values."""
    done, found = run
    assert done.returncode == 0, done.stderr
    assert found
    for command in found:
        overrides = [one for one in command if one != "-m"]
        assert overrides[-1] == "seed=3"
        singles = [first_value(one) for one in overrides]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            made = compose("config", singles)
        assert made.results.startswith(place)


def first_value(override):
    """The override with the first of the values that it sweeps over."""
    if override.startswith("~"):
        return override
    (parsed,) = OverridesParser.create().parse_overrides([override])
    if not parsed.is_sweep_override():
        return override
    return f"{override.split('=')[0]}={next(iter(parsed.sweep_string_iterator()))}"


def test_an_unknown_part_is_refused_before_anything_runs(tmp_path):
    done, found = commands(tmp_path, "mlp", "speed")
    assert done.returncode == 1
    assert (
        "no part speed; expected published, cost, in_domain, in_domain_256, with_attention, all or some of mlp"
        in done.stderr
    )
    assert not found


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("real_models_table", SCRIPT.with_name("table.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(criterion, sparsity, left=None, **options):
    one = record(criterion, sparsity, **options)
    left = {"model": left or one.sparsity["model"]}
    return replace(one, sparsity={**one.sparsity, **left}, peak_bytes={"plan": 2_500_000_000})


def test_increases_are_shares_of_the_released_code_s(table):
    """`record` adds 3 x sparsity x the length of the criterion's name to a dense perplexity of 10."""
    released = [run("CFSP", share, allocator="CFSPReleased") for share in (0.2, 0.5)]
    found = table.ratios([*released, run("OBS", 0.2), run("OBS", 0.5, left=0.3), run("WandaSP", 0.5)])
    rows = found.set_index("method")
    assert rows.loc["cfsp / cfsp_released", "20%"] == rows.loc["cfsp / cfsp_released", "50%"] == "1.00"
    assert rows.loc["obs", "20%"] == "0.75"
    assert rows.loc["obs", "50%"] == "(0.75)"  # of another size
    assert rows.loc["wanda_sp", "50%"] == "1.75"
    assert rows.loc["wanda_sp", "20%"] == "-"  # not run
    assert rows.loc["obs", "memory, GB"] == "2.5"


def test_increases_need_a_run_of_the_released_code(table):
    with pytest.raises(ValueError, match="no run of cfsp / cfsp_released without 50%"):
        table.ratios([run("CFSP", 0.2, allocator="CFSPReleased"), run("OBS", 0.5)])


def test_methods_are_told_apart_by_what_their_search_does(table):
    curves = {"shares": [0.5], "drop_blocks": False, "rounds": 0}
    plain = run("OBS", 0.2, allocator="ErrorCurves")
    names = []
    for options in ({}, {"rounds": 2}, {"drop_blocks": True}, {"drop_blocks": True, "rounds": 2}):
        allocator = {**plain.config["allocator"], **curves, **options}
        names.append(table.method(replace(plain, config={**plain.config, "allocator": allocator})))
    assert names == [
        "obs / error_curves",
        "obs / error_curves (joint, 2)",
        "obs / error_curves with blocks",
        "obs / error_curves with blocks (joint, 2)",
    ]

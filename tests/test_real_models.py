"""Real models: every part of the study composes, and an unknown part is refused."""

import importlib.util
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from studies import metric, record

from cfsp.records.outcome_file import named_outcomes, write_outcomes
from cfsp.records.outcomes import Outcomes
from cfsp.records.record import Metric
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
    parts = "published, cost, in_domain, in_domain_256, with_attention, all or some of mlp"
    assert f"no part speed; expected {parts}" in done.stderr
    assert not found


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("real_models_table", SCRIPT.with_name("table.py"))
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
    return module


def test_the_first_pages_show_the_published_runs(table):
    text = table.summary(table.by_method(), "SmolLM2-135M-Instruct", "gemma-3-270m")
    for page in table.PAGES:
        assert text in page.read_text(), f"{page}: run experiments/real_models/table.py"


def run(criterion, sparsity, left=None, **options):
    one = record(criterion, sparsity, **options)
    left = {"model": left or one.sparsity["model"]}
    return replace(one, sparsity={**one.sparsity, **left}, peak_bytes={"plan": 2_500_000_000})


def saved(folder, *runs):
    """The runs by file, each with what its windows lost."""
    found = {}
    for one in runs:
        write_outcomes(folder, one)
        found[one.save(folder)] = one
    return found


def test_increases_are_shares_of_the_released_code_s(table, tmp_path):
    """`record` adds 3 x sparsity x the length of the criterion's name to a dense perplexity of 10."""
    released = [run("CFSP", share, allocator="CFSPReleased") for share in (0.2, 0.5)]
    ours = [run("OBS", 0.2), run("OBS", 0.5, left=0.3), run("WandaSP", 0.5)]
    found = table.ratios(saved(tmp_path, *released, *ours), [run("OBS", 0.3)])
    rows = found.set_index("method")
    assert rows.loc["cfsp_released", "20%"] == rows.loc["cfsp_released", "50%"] == "1.00"
    assert rows.loc["obs", "20%"] == "0.75"
    assert rows.loc["obs", "50%"] == "(0.75)"  # of another size
    assert rows.loc["wanda_sp", "50%"] == "1.75"
    assert rows.loc["wanda_sp", "20%"] == rows.loc["wanda_sp", "memory, GB"] == "-"  # not run
    assert rows.loc["obs", "memory, GB"] == "2.5"


def test_increases_of_several_seeds_are_means(table, tmp_path):
    released = run("CFSP", 0.2, allocator="CFSPReleased")  # adds 2.4
    seeds = [run("WandaSP", 0.2, seed=seed) for seed in (0, 1)]  # add 4.2 and 4.45
    rows = table.ratios(saved(tmp_path, released, *seeds)).set_index("method")
    assert rows.loc["wanda_sp", "20%"] == "1.80"


def test_the_interval_of_a_ratio_is_of_the_same_windows(table, tmp_path):
    """A method that adds half in each window adds half in each draw; one of other windows may not."""
    dense = np.log([8.0, 9.0, 12.0])
    losses = {"CFSP": [2.0, 4.0, 8.0], "OBS": [1.0, 2.0, 4.0], "WandaSP": [1.0, 0.4, 10.0]}
    runs = []
    for criterion, more in losses.items():
        allocator = "CFSPReleased" if criterion == "CFSP" else "Uniform"
        kept = {"dense": dense, "pruned": dense + np.log1p(np.array(more) / 1e6)}
        one = run(criterion, 0.2, allocator=allocator)
        metrics = {
            model: {
                name: replace(metric, value=float(np.exp(kept[model].mean())), outcomes=outcomes(kept[model]))
                for name, metric in one.metrics[model].items()
            }
            for model in kept
        }
        runs.append(named_outcomes(replace(one, metrics=metrics)))
    rows = table.ratios(saved(tmp_path, *runs)).set_index("method")
    assert rows.loc["obs", "20%"] == "0.50 (0.50 to 0.50)"
    assert rows.loc["wanda_sp", "20%"] == "0.81 (0.10 to 1.25)"


def outcomes(values):
    return Outcomes("nats", ["a", "b", "c"], [*map(float, values)])


def test_increases_need_a_run_of_the_released_code(table, tmp_path):
    runs = saved(tmp_path, run("CFSP", 0.2, allocator="CFSPReleased"), run("OBS", 0.5))
    with pytest.raises(ValueError, match="no run of cfsp_released without 50%"):
        table.ratios(runs)


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


@pytest.mark.parametrize("preset", ["cfsp", "cfsp_released", "refit", "obs_fisher", "ladder"])
def test_a_preset_has_its_name_and_tells_another_ridge(table, preset):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = OmegaConf.to_container(compose("config", [f"+experiment={preset}"]), resolve=False)
    one = replace(run("CFSP", 0.2), config=made)
    assert table.method(one) == preset
    if "ridge" in made["compensation"]:
        other = {**made, "compensation": {**made["compensation"], "ridge": 5.0}}
        assert table.method(replace(one, config=other)) == f"{preset} (ridge 5)"


def answered(criterion, answers):
    """A run on two tasks. answers: (task, of the dense model, of the pruned one), 1 for a right one."""
    one = run(criterion, 0.2)
    sides = {"dense": {}, "pruned": {}}
    for task, *both in answers:
        for model, values in zip(sides, both, strict=True):
            kept = Outcomes("correct", [str(place) for place in range(len(values))], values)
            protocol = {"measure": task, "papers": True}
            mean = sum(values) / len(values)
            sides[model][f"acc/{task}"] = Metric(mean, 0.1, len(values), "higher", protocol, outcomes=kept)
    return named_outcomes(replace(one, metrics=sides))


def test_the_table_of_tasks_joins_the_questions_of_all(table, tmp_path):
    tasks = [("a", [1] * 10, [0] * 10), ("b", [1, 0] * 5, [0, 1] * 5)]
    text = table.tasks(saved(tmp_path, answered("OBS", tasks)), table.method, "x")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "± " in line][
        1:
    ]
    assert rows[0] == ["acc/a", "10", "100.0 ± 0.0", "0.0 ± 0.0"]
    assert rows[1] == ["acc/b", "10", "50.0 ± 16.7", "50.0 ± 16.7 ≈"]
    assert rows[2][:2] == ["all choices", "20"]
    assert rows[2][2].startswith("75.0")
    assert rows[2][3].startswith("25.0")


def test_the_table_of_texts_says_what_was_asked_of_all(table, tmp_path):
    protocol = {"measure": "fidelity", "windows": 4}
    kl = metric(0.0, protocol), metric(0.5, protocol)
    runs = [run("OBS", size, **{"kl/x": kl}) for size in (0.2, 0.3)]
    runs = [
        replace(one, metrics={model: {"kl/x": pair["kl/x"]} for model, pair in one.metrics.items()})
        for one in runs
    ]
    text = table.texts(saved(tmp_path, runs[0]), table.method, "x")
    assert "`WINDOWS=4` and `sparsity=0.2`" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| obs")]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["obs", "10.0%", "0.500"]
    assert table.texts(saved(tmp_path, *runs), table.method, "x").count("## Other windows") == 2
    again = replace(runs[0], id="0" * 12)
    with pytest.raises(ValueError, match="obs: several runs"):
        table.texts(saved(tmp_path, runs[0], again), table.method, "x")

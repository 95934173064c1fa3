"""Real models: every part of the study composes, and an unknown part is refused."""

import os
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from cfsp.running.build import CONF

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "experiments" / "real_models" / "run.sh"
PARTS = "mlp both depth calibrations recovery latency zero_shot generation".split()


def commands(tmp_path, *arguments):
    """The arguments of every `cfsp` that a part would run."""
    fake, log = tmp_path / "bin" / "cfsp", tmp_path / "log"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nfor one in "$@"; do printf "%s\\n" "$one" >> {log}; done\necho >> {log}\n')
    fake.chmod(0o755)
    # A copy, because the script prefers the commands of the checkout that it lies in.
    copy = tmp_path / "experiments" / "real_models" / "run.sh"
    copy.parent.mkdir(parents=True)
    copy.write_text(SCRIPT.read_text())
    path = f"{fake.parent}:{os.environ['PATH']}"
    done = subprocess.run(  # noqa: PLW1510  # its exit code is what is tested
        ["bash", str(copy), *arguments], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    found = log.read_text().strip().split("\n\n") if log.exists() else []
    return done, [one.splitlines() for one in found]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("part", PARTS)
def test_every_command_of_a_part_composes(part, tmp_path):
    done, found = commands(tmp_path, part, "seed=3")
    assert done.returncode == 0, done.stderr
    assert found
    for command in found:
        overrides = [one for one in command if one != "-m"]
        assert overrides[-1] == "seed=3"
        singles = [first_value(one) for one in overrides]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            made = compose("config", singles)
        assert made.results.startswith("results/real_models_full/")


def first_value(override):
    """The override with the first of the values that it sweeps over."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    if not parsed.is_sweep_override():
        return override
    return f"{override.split('=')[0]}={next(iter(parsed.sweep_string_iterator()))}"


def test_an_unknown_part_is_refused_before_anything_runs(tmp_path):
    done, found = commands(tmp_path, "mlp", "speed")
    assert done.returncode == 1
    assert "no part speed; expected published, all or some of mlp" in done.stderr
    assert not found

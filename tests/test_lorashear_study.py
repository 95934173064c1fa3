"""LoRAShear's study: all trainings read the same texts; runs alike in all but the seed are averaged."""

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from pages import understood
from studies import record

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "experiments" / "lorashear"


def commands(part, folder, **variables):
    """The runs that the script starts, each its words."""
    program = folder / "python"
    program.write_text("#!/bin/bash\nshift 2\nprintf '%q ' \"$@\"\necho\n")
    program.chmod(0o755)
    words = ["bash", str(STUDY / "run.sh"), part]
    environment = {**os.environ, "PYTHON": str(program), "SEEDS": "0", "SHARES": "0.2", **variables}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_all_trainings_read_the_same_texts(tmp_path):
    found = [understood(shlex.join(["cfsp", *words])) for words in commands("rivals", tmp_path)]
    assert len(found) == 4
    read = [part.data.labels for parts in found for part in (parts.schedule, parts.recovery) if part.trains]
    assert len(read) == 5
    assert all(one == read[0] for one in read)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [("", "[perplexity_text]"), ("evaluation.zero_shot.limit=9", "[perplexity_text,zero_shot]")],
)
def test_overrides_of_zero_shot_tasks_select_them(tmp_path, overrides, expected):
    for words in commands("real", tmp_path, ZERO_SHOT=overrides):
        assert f"evaluation={expected}" in words
        assert all(word in words for word in overrides.split())


def test_only_runs_alike_in_all_but_the_seed_are_averaged(monkeypatch):
    monkeypatch.syspath_prepend(STUDY)
    import table

    def run(seed=0, steps=300, rate=5e-3, window=512):
        one = record(seed=seed, training={"tokens": 1, "seconds": 1.0})
        recovery = one.config["recovery"]
        training = {"max_steps": steps, "learning_rate": rate}
        recovery |= {"training": training, "data": {"window": window}}
        return replace(one, config={**one.config, "recovery": recovery})

    keys = [
        tuple(table.row(one)[name] for name in table.KEY)
        for one in (run(), run(seed=1), run(steps=30), run(rate=1e-3), run(window=128))
    ]
    assert keys[0] == keys[1]
    assert len({*keys}) == 4

"""Overrides: nested groups of a group that is swept, and groups that are given no name."""

import sys

import pytest

from cfsp.cli.main import main
from cfsp.cli.overrides import understood


def test_only_single_values_below_a_swept_group_wait():
    swept = ["-m", "recovery=lora,full", "recovery/data=text", "recovery.seed=1,2", "sparsity=0.3"]
    swept += ["+recovery.training.arguments.optim=x", "recovery.data.sources.text.text.paths=[a,b]"]
    assert understood(swept) == [
        "-m",
        "recovery=lora,full",
        "recovery/data=choice(text)",
        "recovery.seed=1,2",
        "sparsity=0.3",
        "+recovery.training.arguments.optim=choice(x)",
        "recovery.data.sources.text.text.paths=choice([a,b])",
    ]
    for alone in (["recovery=lora", "recovery/data=text"], ["-m", "recovery=lora", "recovery/data=text"]):
        assert understood(alone) == alone


@pytest.mark.parametrize("group", ["evaluation", "criterion", "recovery", "logger"])
@pytest.mark.parametrize("value", ["null", "5", "true", "null,size"])
def test_a_group_without_a_name_is_one_line(group, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cfsp", f"{group}={value}"])
    with pytest.raises(SystemExit, match="1"):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"cfsp: error: {group}={'None' if 'null' in value else value.capitalize()}: expected"
    )


@pytest.mark.parametrize(
    "nested",
    [
        ["recovery=lora,full", "recovery/data=text", "recovery/objective=distillation"],
        [
            "recovery=lora,distill",
            "recovery/data=text",
            "recovery/parameters=full",
            "recovery/training=default",
        ],
        ["criterion=flap,magnitude", "+criterion.foo=1"],
    ],
    ids=" ".join,
)
def test_nested_groups_are_swept(nested, monkeypatch, capsys, tmp_path, tiny_overrides, text_file):
    monkeypatch.chdir(tmp_path)
    data = [f"recovery.data.sources.text.text.paths={text_file}", "recovery.data.window=32"]
    data += ["recovery.training.max_steps=1", "recovery.data.held_out=4", "recovery.training.accumulation=1"]
    more = data if "recovery/data=text" in nested else []
    overrides = tiny_overrides("evaluation=[]")
    monkeypatch.setattr(sys, "argv", ["cfsp", "-m", *overrides, "evaluation=[]", *nested, *more])
    failing = "+criterion.foo=1" in nested
    if failing:
        with pytest.raises(SystemExit, match="1"):
            main()
    else:
        main()
    out, err = capsys.readouterr()
    assert out.count("made in") == (0 if failing else 2), err
    if failing:
        assert err.count("criterion.foo=1: no such option") == 2

"""Overrides: nested groups of a group that is swept, and groups that are given no name."""

import sys

import pytest

from cfsp.cli.main import main
from cfsp.cli.overrides import CommandLine, understood
from cfsp.cli.typos import check, values


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


@pytest.fixture
def own(tmp_path):
    """A folder with a group, a choice of one of ours, and a main config of the user's own."""
    for name, text in (
        ("shape/wide.yaml", "width: 1"),
        ("shape/narrow.yaml", "{width: 2, less: 3}"),
        ("criterion/mine.yaml", "_target_: mine.Mine"),
        ("main.yaml", "defaults: [config, _self_, {shape: wide}]\nextra: 1"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return str(tmp_path)


def test_a_group_of_one_s_own_is_one(own):
    swept = ["-m", "+shape=wide,narrow", "shape.width=3"]
    assert understood(["--config-dir", own, *swept]) == [
        "--config-dir",
        own,
        *swept[:-1],
        "shape.width=choice(3)",
    ]
    assert understood([f"-cd={own}", *swept])[-1] == "shape.width=choice(3)"
    assert understood(swept) == swept
    with pytest.raises(ValueError, match="criterion=5: expected the name of a choice: .*, mine, "):
        understood(["--config-dir", own, "criterion=5"])


def test_each_choice_of_an_own_group_is_looked_at_before_anything_runs(own):
    check(["--config-dir", own, "-m", "+shape=wide,narrow"])
    with pytest.raises(ValueError, match=r"shape.less: no such option"):
        check(["--config-dir", own, "-m", "+shape=narrow,wide", "shape.less=4"])
    with pytest.raises(ValueError, match="shape=round: no such choice; expected one of narrow, wide"):
        check(["--config-dir", own, "-m", "+shape=wide,round"])
    line = CommandLine.of(["--config-dir", own])
    assert values("+shape=glob(*)", line) == ["+shape=narrow", "+shape=wide"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("flags", [["--config-name", "main"], ["--config-name=main"], ["-cn", "main"]])
def test_the_config_that_is_named_is_the_one_that_is_looked_at(own, flags):
    check(["--config-dir", own, *flags, "extra=2", "shape=narrow"])
    with pytest.raises(ValueError, match="extras: no such option; did you mean extra"):
        check(["--config-dir", own, *flags, "extras=2"])
    with pytest.raises(ValueError, match="extra: no such option"):
        check(["--config-dir", own, "extra=2"])
    with pytest.raises(ValueError, match="Cannot find primary config 'none'"):
        check(["--config-dir", own, "--config-name=none"])


def test_a_sweep_that_has_no_end_names_its_override():
    with pytest.raises(ValueError, match=r"^sparsity=interval\(0,1\): its values cannot be listed"):
        check(["-m", "criterion=flap", "sparsity=interval(0,1)"])


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


@pytest.mark.slow
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

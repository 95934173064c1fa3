"""What a newcomer types first: list, describe, help, and keys and choices with a slip in them."""

import sys

import pytest

from cfsp.cli.catalogue import Choice, choices_of, groups
from cfsp.cli.main import main
from cfsp.cli.overrides import without_flag
from cfsp.running.build import search_path

EVERY = [choice for group in groups(search_path(None)) for choice in choices_of(group, search_path(None))]


@pytest.fixture
def typed(monkeypatch, capsys, tmp_path):
    """What a command line says: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cfsp", *arguments])
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        out, err = capsys.readouterr()
        return code, out, err if isinstance(code, int) else code

    return call


@pytest.mark.parametrize("choice", EVERY, ids=lambda one: f"{one.group}={one.name}")
def test_every_choice_says_in_a_line_what_it_is(choice):
    assert 5 < len(choice.title) < 200
    assert choice.title[0].isupper()


def test_list_shows_every_group_or_one(typed):
    _, out, _ = typed("list")
    for words in (
        "which units of a site matter; default cfsp",
        "  wanda_sp",
        "arXiv:2306.11695",
        "recovery/data  what a recovery trains on",
        "experiment/paper/flap",
        "+setting=CHOICE",
    ):
        assert words in out
    for asked in (("list", "criterion"), ("--help", "criterion"), ("criterion", "--help")):
        _, out, _ = typed(*asked)
        assert "wanda_sp" in out
        assert "allocator" not in out.splitlines()[0]


def test_every_group_says_in_a_line_what_it_is(typed):
    _, out, _ = typed("list")
    shown = [line for line in out.splitlines() if line and line[0] != " "][:-2]
    assert [line.split("  ")[0] for line in shown] == groups(search_path(None))
    assert all(len(line.split("  ")) == 2 for line in shown)


def test_describe_shows_options_with_meaning_default_and_source(typed):
    for asked in (("describe", "criterion=flap"), ("--help", "criterion=flap")):
        _, out, _ = typed(*asked)
        assert any(line.split()[:3] == ["criterion.metric", "wifv", "wifv,"] for line in out.splitlines())
        assert "An et al. 2023, arXiv:2312.11983." in out
        assert "cfsp.criteria.flap.FLAP" in out
    _, out, _ = typed("describe", "recovery=lora")
    assert "cfsp describe recovery/parameters=lora" in out


@pytest.mark.parametrize(
    "choice",
    [one for one in EVERY if one.group.startswith("experiment")],
    ids=lambda one: f"{one.group}={one.name}",
)
def test_every_experiment_is_described_with_keys_that_can_be_typed(choice, typed):
    code, out, _ = typed("describe", f"{choice.group}={choice.name}")
    assert code == 0
    assert "@experiment" not in out


def test_described_lists_are_whole_and_bases_of_other_groups_count(typed):
    assert "[perplexity, routing]" in typed("describe", "experiment=lte")[1]
    _, out, _ = typed("describe", "experiment=obs_fisher")
    for words in ("criterion.metric    fisher", "describe criterion=obs", "compensation=least_squares"):
        assert words in out


def test_choices_of_ones_own_are_listed(typed, tmp_path):
    mine = tmp_path / "conf" / "criterion"
    mine.mkdir(parents=True)
    (mine / "ratio.yaml").write_text(
        "# Activation over weight.\n_target_: my.Ratio\neps: 1.0  # guards zero\n"
    )
    _, out, _ = typed("list", "criterion", "--config-dir", "conf")
    assert "ratio" in out
    assert "Activation over weight" in out
    assert typed("--config-dir", "conf", "list", "criterion")[1] == out
    assert [*Choice("criterion", "ratio", mine / "ratio.yaml").options()] == [("eps", "1.0", "guards zero")]
    for text, title in (
        ("# conf/criterion/ratio.yaml\n# Weight.\n_target_: my.Ratio\n", "Weight"),
        ("_target_: my.Ratio\n", "my.Ratio"),
        ("eps: 1.0\n", ""),
    ):
        (mine / "ratio.yaml").write_text(text)
        assert Choice("criterion", "ratio", mine / "ratio.yaml").title == title


def test_a_choice_of_ones_own_is_described_wherever_its_folder_is_named(typed, tmp_path):
    mine = tmp_path / "conf" / "criterion"
    mine.mkdir(parents=True)
    (mine / "ratio.yaml").write_text("# Activation over weight.\n_target_: cfsp.criteria.flap.FLAP\n")
    before, after = (
        ("--config-dir", "conf", "describe", "criterion=ratio"),
        ("criterion=ratio", "--help", "-cd=conf"),
    )
    for words in (before, after):
        _, out, _ = typed(*words)
        assert out.startswith("criterion=ratio\nActivation over weight")
    (mine / "ratio.yaml").write_text("_target_: not_here.Ratio\n")
    _, _, err = typed("--config-dir", "conf", "describe", "criterion=ratio")
    assert "No module named 'not_here'" in err
    assert "PYTHONPATH=FOLDER" in err


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sparsty=0.3"], "sparsty: no such option; did you mean sparsity"),
        (
            ["criterion=flap", "criterion.metrc=ifv"],
            "criterion.metrc: no such option; did you mean criterion.metric?",
        ),
        (["criterion=flap", "criterion.metrc=ifv"], "\n  cfsp describe criterion=flap shows its options"),
        (["allocator.roundto=8"], "did you mean allocator.round_to?\n  cfsp describe allocator=cfsp shows"),
        (["evaluation.perplexity.windw=8"], "\n  cfsp describe evaluation=perplexity shows its options"),
        (
            ["+experiment=moefication", "schedule/maker=teal", "schedule.maker.expert_size=4"],
            "\n  cfsp describe schedule/maker=teal shows its options",
        ),
        (
            ["+experiment=moefication", "schedule.maker.experts=4"],
            "\n  cfsp describe experiment=moefication shows its options",
        ),
        (
            ["experiment=lte"],
            "the config has no such part; expected +experiment=NAME, with a plus",
        ),
        (
            ["+experiment=lte", "schedule/maker=teal"],
            "the config has no such part; expected schedule=routed_once in place of +experiment=lte",
        ),
        (["schedule/maker=teal"], "expected schedule=routed_once beside it"),
        (["criterion=flp"], "criterion=flp: no such choice; did you mean flap?"),
        (["-m", "criterion=cfsp,flp"], "criterion=flp: no such choice; did you mean flap?"),
        (["evaluation=[perplexty]"], "evaluation=perplexty: no such choice; did you mean perplexity"),
        (["+experiment=flpa"], "experiment=flpa: no such choice; did you mean flap?"),
        (["hydra/launcher=joblb"], "hydra/launcher=joblb: no such choice; did you mean joblib?"),
        (["foo"], "'foo': expected KEY=VALUE, list, describe or help"),
        (["model.path=/a=b"], "'model.path=\"/a=b\"'"),
        (["calibration.text.paths=[données/a b.txt]"], "'calibration.text.paths=[\"données/a b.txt\"]'"),
        (
            ["sites=mlp,attention"],
            "a list is 'sites=[mlp,attention]'; a sweep is cfsp -m sites=mlp,attention",
        ),
        (["~nowhere"], "~nowhere: the config has no such key to delete"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: expected a folder of config groups"),
        (["list", "criterian"], "criterian: no such group; did you mean criterion?"),
        (["describe", "criterion=flp"], "flp: no such choice of criterion; did you mean flap?"),
    ],
)
def test_a_slip_is_named_with_what_was_meant(typed, arguments, message):
    _, out, err = typed(*arguments)
    assert out == ""
    assert message in err
    assert err.startswith("cfsp: error: ")
    assert len(err.strip().splitlines()) <= 3


def test_globs_and_long_ranges_are_sweeps_too(typed):
    _, out, _ = typed("-m", "criterion=glob(w*)", "seed=range(0,3)", "--cfg", "job")
    assert out.count("# cfsp criterion=wanda_sp seed=") == 3


def test_quoted_as_told_the_value_is_taken(typed):
    code, out, _ = typed('model.path="/a=b"', "--cfg", "job")
    assert code == 0
    assert "path: /a=b" in out


def test_the_configs_of_a_sweep_can_be_seen(typed):
    _, out, _ = typed("-m", "criterion=flap,cfsp", "sparsity=0.2,0.5", "--cfg", "job")
    assert out.count("# cfsp criterion=") == 4
    assert out.count("sparsity: 0.5") == 2


def test_the_shell_completes_choices_and_options(typed, monkeypatch):
    for line, completed in (
        ("cfsp criterion=fl", "criterion=flap"),
        ("cfsp calibration.sam", "calibration.samples="),
    ):
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        _, out, _ = typed("-sc", "query=bash")
        assert out.strip() == completed


@pytest.mark.parametrize(
    ("arguments", "rest", "wanted"),
    [
        (["-m", "--cfg", "job", "seed=0,1"], ["-m", "seed=0,1"], "job"),
        (["-m", "--cfg=job", "seed=0,1"], ["-m", "seed=0,1"], "job"),
        (["seed=0", "-c", "all"], ["seed=0"], "all"),
    ],
)
def test_the_config_that_is_asked_for_is_no_override(arguments, rest, wanted):
    assert without_flag(arguments, ("--cfg", "-c")) == (rest, wanted)

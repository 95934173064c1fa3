"""Options: every one of every config is of the type that it is declared with, and says what it says once."""

import copy
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from families import batches, make
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import cfsp
from cfsp.allocators.uniform import Uniform
from cfsp.compensation.none import NoCompensation
from cfsp.criteria.flap import FLAP
from cfsp.criteria.magnitude import Magnitude
from cfsp.data import calibration
from cfsp.data.calibration import RandomWindows
from cfsp.data.texts import Stdlib
from cfsp.options import check_option, declared
from cfsp.running.build import CONF, choices
from cfsp.running.config import SAME, Config, check_config
from cfsp.schedules.blockwise import Blockwise
from cfsp.schedules.one_shot import OneShot

PARTS = [name for name in declared(Config) if (CONF / name).is_dir()]
NESTED = [
    f"{group}/{path.name}"
    for group in ("recovery", "schedule")
    for path in (CONF / group).iterdir()
    if path.is_dir() and path.name != "base"  # of which choices are made
]
CHOICES = [(group, name) for group in (*PARTS, *NESTED) for name in choices(group)]


OWN_MODEL = ["model._target_=test_options.own_model", "~model.path"]


def own_model(**options):
    """A function of the user's own that loads a model."""


def composed(*overrides) -> DictConfig:
    """The config of a run; files that it lacks are there in name."""
    return copy.deepcopy(composed_once(*overrides))


@cache
def composed_once(*overrides) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(overrides))
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "a" if key == "model.path" else ["a.txt"])
    return config


def check(config: DictConfig) -> None:
    check_config(OmegaConf.to_container(config, resolve=True), OmegaConf.to_container(config))


def chosen(group: str, name: str) -> DictConfig:
    task = ["task=sst2"] if name in ("task", "routing_task") else []
    part, _, inner = group.partition("/")
    outer = {"recovery": "lora", "schedule": "routed_once" if inner == "maker" else "movement"}
    return composed(*task, *([f"{part}={outer[part]}"] if inner else []), f"{group}={name}")


def leaves(config: Mapping, path: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def changed(config: dict, key: str, value: object) -> dict:
    """A copy with another value at a dotted key."""
    *path, last = key.split(".")
    copied = copy.deepcopy(config)
    node = copied
    for part in path:
        node = node[part]
    node[last] = value
    return copied


def refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_config(config, config)
    assert "\n" not in str(error.value)


@pytest.mark.quick_cases(24)
@pytest.mark.parametrize(("group", "name"), CHOICES, ids=map("=".join, CHOICES))
def test_every_boolean_and_every_number_of_every_config_is_checked(group, name):
    config = OmegaConf.to_container(chosen(group, name), resolve=True)
    for key, value in leaves(config):
        if "." in key and not key.startswith(group.replace("/", ".")):
            continue
        bad = ["no", "maybe", "off", "false", 1, 0, None] if isinstance(value, bool) else []
        bad += [True, "x", float("nan"), ["x"], {"a": 1}] if type(value) in (int, float) else []
        for wrong in bad if key != "save" else [1, 0, None]:
            refused(changed(config, key, wrong), key.replace(".", r"\."))


@pytest.mark.quick_cases(24)
@pytest.mark.parametrize(("group", "name"), CHOICES, ids=map("=".join, CHOICES))
def test_every_shipped_config_is_accepted_and_its_unknown_options_are_not(group, name):
    shipped = chosen(group, name)
    check(shipped)
    config = OmegaConf.to_container(shipped, resolve=True)
    targets = [key for key, _ in leaves(config) if key.endswith("._target_")]
    for key in targets:
        option = key.replace("_target_", "foo")
        refused(changed(config, option, 1), rf"{option}=1: no such option; expected one of")


@pytest.mark.quick_cases(20)
@pytest.mark.parametrize(("group", "name"), CHOICES, ids=map("=".join, CHOICES))
def test_what_is_said_twice_has_to_agree_but_for_seeds(group, name):
    for key, value in leaves(OmegaConf.to_container(chosen(group, name))):
        of_task = re.match(r"\$\{(oc\.select:)?task\b", str(value))
        if isinstance(value, str) and value.startswith("${") and key not in ("cache", *SAME) and not of_task:
            assert (value, key.rsplit(".", 1)[-1]) == ("${seed}", "seed")


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.sparsity=0.9"], r"schedule\.sparsity=0\.9 beside sparsity=0\.2: .* sparsity=0\.9 alone"),
        (["sparsity=0.3", "schedule.sparsity=0.9"], r"schedule\.sparsity=0\.9 beside sparsity=0\.3"),
        (["schedule.sparsity_of=model"], "schedule.sparsity_of='model' beside sparsity_of='sites'"),
        (["model.device=cuda"], "model.device='cuda' beside device='cpu'"),
        (["sparsity=false"], r"sparsity=False: expected a share to remove, in \[0, 1\)"),
        (["+foo=1"], "foo=1: no such option; expected one of sites, sparsity, "),
        (["+sparsty=0.5"], "did you mean 'sparsity'"),
        (["+evaluation.foo={a:1}"], "evaluation.foo={'a': 1}: expected an Evaluator"),
        (["+evaluation.foo=null"], "evaluation.foo=None: expected an Evaluator"),
        (["evaluation.perplexity=null"], "evaluation.perplexity=None: expected"),
        (["~calibration.samples"], "calibration.samples is missing: expected a whole number"),
        (["~sparsity", "schedule.sparsity=0.1", "schedule.sparsity_of=sites"], "sparsity is missing"),
        (["sites=[[mlp]]"], r"sites=\[\['mlp'\]\]: expected a list of one or more of mlp, attention"),
        (["device=null"], "device=None: expected cpu, or cuda where there is a GPU"),
        (["save=null"], "save=None: expected false, true"),
        (
            ["seed=4294967296"],
            "seed=4294967296: expected a whole number of at least 0 and at most 42949672",
        ),
        (["allocator._target_=cfsp.criteria.cfsp.CFSP"], "allocator._target_=.*: expected an Allocator"),
        (["allocator._target_=no.such.Class"], "expected a class or function that can be imported"),
        (["allocator._target_=no.such.Class"], "run where its package lies, install it, or .*PYTHONPATH="),
        (["+allocator._partial_=true"], "allocator._partial_=True: no such option"),
        (["~model.dtype"], "model.dtype is missing: expected text; records, tables and cards"),
        (OWN_MODEL, "model.path is missing: expected text; records, tables and cards show it"),
        ([*OWN_MODEL, "+model.path=5"], "model.path=5: expected text"),
        (["calibration.text=null"], "calibration.text=None: expected a Text"),
    ],
)
def test_nonsense_is_one_line_that_names_it(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        check(composed(*overrides))
    assert "\n" not in str(error.value)


def test_a_function_of_one_s_own_loads_the_model():
    check(composed(*OWN_MODEL, "+model.path=x", "+model.rows=3"))


def test_a_key_of_one_s_own_may_be_what_others_refer_to():
    check(composed("+steep={cosine:3,angular:4}", 'allocator.temperature="${steep.${allocator.metric}}"'))


def test_options_of_an_evaluation_that_is_not_chosen_are_said_to_have_no_effect(capsys):
    check(composed("evaluation=size", "+setting=reference"))
    assert capsys.readouterr().err.startswith(
        "cfsp: evaluation.perplexity={'window': 128, 'windows': 64} has no"
    )


@pytest.mark.parametrize("value", ["no", "false", 1, 0, None])
def test_load_runs_no_code_of_a_folder_for_anything_but_true(value, tiny_checkpoint):
    with pytest.raises(ValueError, match=r"trust_remote_code=.*: expected true or false"):
        cfsp.load(tiny_checkpoint, trust_remote_code=value)


def test_the_python_face_is_as_strict(tmp_path, tokenizer):
    model = make("llama")
    for options, message in (
        ({"temperature": "x"}, "temperature='x': expected a finite number"),
        ({"seed": True}, "seed=True: expected a whole number"),
        ({"sparsity": False}, "sparsity=False: expected a finite number"),
        ({"allow_empty": "no"}, "allow_empty='no': expected true or false"),
        ({"schedule": OneShot(sparsity=0.9), "sparsity": 0.3}, "sparsity: the schedule is an object"),
    ):
        with pytest.raises(ValueError, match=message):
            cfsp.plan(model, batches(), **options)
    with pytest.raises(ValueError, match="overwrite='no': expected true or false"):
        cfsp.save(tmp_path, model, tokenizer, cfsp.PrunePlan(()), overwrite="no")
    for make_part, message in (
        (lambda: Uniform(allow_empty="no"), "allow_empty='no'"),
        (lambda: Blockwise(sparsity=0.5, apart=1), "apart=1: expected true or false"),
        (lambda: RandomWindows("text", 1, 2, 1, 0), "text='text': expected a Text"),
        (lambda: RandomWindows(Stdlib("test"), 1, 2, 1, 0, bos="no"), "bos='no'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_part()
    with pytest.raises(TypeError):
        NoCompensation(foo=1)


def test_types_are_spelled_as_a_user_would():
    for kind, value, expected in (
        (float | None, "x", "a finite number or null"),
        (list[int], [True], "a list of whole numbers"),
        (Mapping[str, float], 5, "a mapping of names to finite numbers"),
        (str | Path, None, "text or a path"),
    ):
        with pytest.raises(ValueError, match=f"a=.*: expected {expected}$"):
            check_option("a", value, kind)
    check_option("a", 1, float)
    check_option("a", (1, 2.5), list[float])
    check_option("a", {"b": {"c": 1}}, Mapping[str, object])


def test_samples_that_no_memory_holds_are_named_with_what_they_take(monkeypatch):
    monkeypatch.setattr(calibration, "physical_memory", lambda: 2**30)
    message = "10,240,000,000 tokens take 228.9 GiB, and the machine has 1.0; expected at most samples=43690"
    with pytest.raises(ValueError, match=message):
        RandomWindows(Stdlib("test"), 10_000_000, 1024, 1, 0)
    RandomWindows(Stdlib("test"), 43_690, 1024, 1, 0)


def test_a_power_of_flap_s_metric_that_overflows_is_refused():
    part = {"allocator": "uniform", "kinds": ["attention"], "sparsity": 0.5}
    with pytest.raises(ValueError, match="attention_power=.*over- or underflows; expected 1 or 2"):
        cfsp.plan(make("llama"), batches(), criterion=FLAP(attention_power=1e300), **part)


@pytest.mark.parametrize("weights", ["all", "consumers"])
def test_a_norm_whose_powers_underflow_is_refused(weights):
    part = {"allocator": "uniform", "sparsity": 0.5}
    with pytest.raises(ValueError, match="norm=.*over- or underflow; expected 1 or 2"):
        cfsp.plan(make("llama"), batches(), criterion=Magnitude(norm=1e300, weights=weights), **part)
    assert cfsp.plan(make("llama"), batches(), criterion=Magnitude(norm=4, weights=weights), **part)


def test_the_meta_device_holds_no_weights(tiny_checkpoint):
    with pytest.raises(ValueError, match=r"device='meta'.*expected cpu, or cuda"):
        cfsp.load(tiny_checkpoint, device="meta")

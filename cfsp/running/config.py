"""The config: its top-level keys, their types, and the options that repeat another.

A whole config is checked by these types before anything is built; constructors check ranges only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

from cfsp.allocators.base import Allocator
from cfsp.checks import check_seed
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.data.calibration import Calibration
from cfsp.data.tasks.base import Task
from cfsp.evaluation.base import Evaluator, Sampler
from cfsp.exports.base import Exporter
from cfsp.loggers.base import Logger
from cfsp.machine.environment import is_main
from cfsp.options import check_option, shown, spelled, unknown
from cfsp.records.wanted import target_names, target_of
from cfsp.recovery.base import Recovery
from cfsp.running.build import choices
from cfsp.running.plugins import Modules
from cfsp.schedules.base import SHARE, Schedule


@dataclass(frozen=True)
class Config:
    """The config of a run, as in conf/config.yaml.

    model: a function that loads a model and its tokenizer, with at least the options of `SAID_OF_A_MODEL`.
    seed: the default of the parts' seeds. A part may have another (other windows for the same training);
    tables treat each as a seed of its own.
    """

    sites: Annotated[list[str], "a list of one or more of mlp, attention, query_heads, block, hidden"]
    sparsity: Annotated[float | None, SHARE]
    sparsity_of: Literal["sites", "blocks", "model"]  # BASES
    target: Annotated[dict, "a mapping of the names in conf/config.yaml"]
    seed: int
    device: Annotated[str, "cpu, or cuda where there is a GPU"]
    results: Annotated[str, "a folder that can be written"]
    cache: Annotated[str | Literal[False], "a folder or off"]
    save: Annotated[bool | str, "false, true (results/models/<id>) or a folder"]
    overwrite: bool
    push: Annotated[str | None, "null or a repository of the hub: owner/name"]
    private: bool
    plugins: Modules
    model: Annotated[tuple, "a function that loads a model and its tokenizer"]
    task: Task
    calibration: Calibration
    criterion: Criterion
    allocator: Allocator
    compensation: Compensation
    schedule: Schedule
    recovery: Recovery
    evaluation: Mapping[str, Evaluator | Sampler]
    export: Mapping[str, Exporter]
    logger: Mapping[str, Logger]


SAME = {"schedule.sparsity": "sparsity", "schedule.sparsity_of": "sparsity_of", "model.device": "device"}
"""Options that repeat a top-level option for the part that reads them, and must equal it.

They stay in the config because the ids of runs contain them.
"""


SAID_OF_A_MODEL = {"path": str, "revision": str | None, "dtype": str, "head": str}
"""Options that a run reads of every model, whatever function loads it."""


def check_config(config: Mapping[str, Any], raw: Mapping[str, Any]) -> None:
    """Check a whole config before anything is built. raw: the config with its interpolations.

    Raises:
        ValueError: a key is unknown, missing, of another type than declared, or contradicts another one.
    """
    known = [field.name for field in fields(Config)]
    for name, value in config.items():
        if name not in known and not refers_to(raw, name):
            raise ValueError(unknown(name, value, known))
    kinds = get_type_hints(Config, include_extras=True)
    for name in known:
        if name not in config:
            raise ValueError(f"{name} is missing: expected what conf/config.yaml has there")
        value = config[name]
        if name in ("evaluation", "export", "logger") and isinstance(value, Mapping):
            value = {key: one for key, one in value.items() if not left_over(name, key, one)}
        check_option(name, value, kinds[name])
    check_seed("seed", config["seed"])
    check_asked(config)
    for name, kind in SAID_OF_A_MODEL.items():
        if name not in config["model"]:
            raise ValueError(
                f"model.{name} is missing: expected {spelled(kind)}; records, tables and cards show it, so "
                "a function of your own must accept it too"
            )
        check_option(f"model.{name}", config["model"][name], kind)
    for name, source in SAME.items():
        part, option = name.split(".")
        value, wanted = config[part].get(option, config[source]), config[source]
        if value != wanted:
            raise ValueError(
                f"{name}={shown(value)} beside {source}={shown(wanted)}: expected one value; give "
                f"{source}={shown(value)} alone"
            )


def check_asked(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless the config asks for either a sparsity or one target."""
    wanted, share = target_of(config["target"]), config["sparsity"]
    if wanted is None and share is None:
        raise ValueError(f"sparsity=null: expected {SHARE}, or one of {target_names()}")
    if wanted is not None and share is not None:
        raise ValueError(f"{wanted.key} beside sparsity={shown(share)}: expected sparsity=null, or no target")


def chosen(group: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Return the parts of a group of several that are to be built."""
    return (part for part in group.values() if "_target_" in part)


def left_over(group: str, name: str, value: Any) -> bool:
    """Return whether an entry only has options of a part that is not chosen, as in a setting; warn if so."""
    left = isinstance(value, Mapping) and "_target_" not in value and name in choices(group)
    if left and is_main():
        print(
            f"cfsp: {group}.{name}={shown(value)} has no effect: expected {name} among {group}=[...]",
            file=sys.stderr,
        )
    return left


def refers_to(raw: Any, name: str) -> bool:
    """Return whether any value refers to a top-level key: ${name} or ${name.more}."""
    if isinstance(raw, Mapping):
        return any(refers_to(value, name) for value in raw.values())
    if isinstance(raw, list):
        return any(refers_to(value, name) for value in raw)
    return isinstance(raw, str) and re.search(rf"\$\{{{re.escape(name)}[.}}\[]", raw) is not None

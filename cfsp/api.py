"""The Python API: the steps of the command line, on a user's own objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.allocators.base import Allocator
from cfsp.checkpoints.save import save as save_folder
from cfsp.compensation.base import Compensation
from cfsp.criteria.base import Criterion
from cfsp.model.find_sites import find_sites
from cfsp.options import checked
from cfsp.plans.plan import PrunePlan
from cfsp.plans.subject import Subject
from cfsp.plans.surgery import apply as carry_out
from cfsp.running.build import build_components
from cfsp.schedules.base import Schedule
from cfsp.schedules.method import Method
from cfsp.schedules.size_target_of import size_target_of
from cfsp.storage.cache import Cache


@checked
def plan(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    kinds: Sequence[str] = ("mlp",),
    criterion: str | Criterion = "cfsp",
    allocator: str | Allocator = "cfsp",
    compensation: str | Compensation = "none",
    schedule: str | Schedule = "one_shot",
    sparsity: float | None = None,
    sparsity_of: str | None = None,
    size_target: Mapping[str, Any] | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    **options: Any,
) -> PrunePlan:
    """Decide which units to keep; the model is not changed.

        plan = cfsp.plan(model, batches, criterion="flap", allocator="global_rank", sparsity=0.3)
        cfsp.apply(plan, model)

    batches: any iterable of dicts with `input_ids` [batch, tokens] and `attention_mask`, as in `collect`.
    criterion, allocator, compensation, schedule: names of the YAML files of that group, or objects.
    sparsity, sparsity_of: 0.2 of the sites by default; a schedule that is an object has its own.
    size_target: instead, the most that the model may have, as `target` in conf/config.yaml:
        {"parameters": 100e6}, {"memory": "2GiB", "batch": 8, "context": 4096}, {"macs": 40e9, "tokens": 9}.
    cache: a folder that stores the dense model's statistics for the next plan.
    options: passed to the component that has them, for example `temperature=6.0` or `metric="ifv"`.

    Raises:
        KeyError, TypeError, ValueError: a name, an option or a value is not accepted.
    """
    names = {"criterion": criterion, "allocator": allocator, "compensation": compensation}
    removal = {"sparsity": sparsity, "sparsity_of": sparsity_of, "size_target": size_target}
    decider, method = deciders(names | {"schedule": schedule}, options, removal, seed)
    subject = Subject(model, find_sites(model, kinds), Cache.at(cache or "off"))
    return decider.make(subject, batches, method, decider.prepare(subject, method)).plan


def deciders(
    names: Mapping[str, Any], options: Mapping[str, Any], removal: Mapping[str, Any], seed: int
) -> tuple[Schedule, Method]:
    """Return the schedule and its method.

    names: group -> name or object. removal: how much goes, as `plan` takes it; None for what is not given.

    Raises ValueError if the schedule is an object, which has its own, or a sparsity is beside a target.
    """
    given = {name: value for name, value in removal.items() if value is not None}
    if given and isinstance(names["schedule"], Schedule):
        raise ValueError(
            f"{' and '.join(given)}: the schedule is an object with its own; expected the value there alone"
        )
    target = size_target_of(given.pop("size_target", None))
    if given and target is not None:
        raise ValueError(f"{' and '.join(given)} beside {target.wanted.key}: expected one of them")
    shares = {"sparsity": None if target else 0.2, "sparsity_of": "sites"} | given
    parts = build_components(names, options, **shares, seed=seed)
    schedule = parts.pop("schedule")
    return schedule if target is None else replace(schedule, size_target=target), Method(**parts)


@checked
def save(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: PrunePlan,
    overwrite: bool = False,
) -> None:
    """Write a pruned model, whole or not at all, as a folder that plain transformers loads.

    Licences and processor configs are copied from the folder that the model was loaded from; the
    tokenizer is written as given. A model whose blocks differ needs `trust_remote_code=True` to load, or
    `cfsp.load`, which runs no code of the folder.

    Raises:
        ValueError: the folder is not empty and `overwrite` is false, or the family's config cannot
            describe the model.
        OSError: the disk is full or cannot be written; nothing is left then.
    """
    named = model.config.name_or_path
    source = Path(named) if named and Path(named).is_dir() else None
    save_folder(folder, model, tokenizer, plan, overwrite=overwrite, source=source)


def apply(plan: PrunePlan, model: PreTrainedModel) -> None:
    """Cut the model in place as the plan says. Raises ValueError if it was made for another model."""
    if not plan.edits:
        return
    kinds = list(dict.fromkeys(edit.kind for edit in plan.edits))
    carry_out(plan, find_sites(model, kinds), model)

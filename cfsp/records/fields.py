"""Fields: the types of a record's parts, which all readers of records rely on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict

Finite = Annotated[float, math.isfinite, "a finite number"]
Count = Annotated[int, lambda value: value >= 0, "a whole number of at least 0"]
Size = Annotated[int, lambda value: value > 0, "a whole number of at least 1"]
Asked = Annotated[float, lambda value: 0 <= value < 1, "a share to remove, in [0, 1)"]
Used = Annotated[float, lambda value: 0 < value < 1, "a share of units to use, in (0, 1)"]
Removed = Annotated[float, lambda value: -1 < value <= 1, "a share that is removed, at most 1"]
Width = Annotated[
    list[int], lambda pair: len(pair) == 2 and 0 <= pair[1] <= pair[0] > 0, "[units, kept] with kept <= units"
]
Range = Annotated[list[float], lambda ends: len(ends) == 2, "[lowest, highest]"]
PerBlock = Annotated[list[float], bool, "a number per block"]


def has_named_parts(config: Any) -> bool:
    """Return whether every `_target_` in a config is a text."""
    if isinstance(config, dict):
        return isinstance(config.get("_target_", ""), str) and all(map(has_named_parts, config.values()))
    return not isinstance(config, list) or all(map(has_named_parts, config))


class TableFields(TypedDict):
    """Seconds of the dense and of the pruned model by the table that a plan went by."""

    dense: Finite
    predicted: Finite


class TargetFields(TypedDict):
    """What a target counts, and how much of it: at most, in the dense and in the pruned model.

    Of a latency, `asked` is a share of the dense model's or seconds; the others are seconds, timed in turns.
    """

    kind: str
    asked: Finite
    dense: Finite
    reached: Finite
    table: NotRequired[TableFields]


Target = Annotated[Mapping[str, Any], TargetFields]


class Part(TypedDict):
    """The config of an object."""

    _target_: str


class SchedulePart(Part):
    active: NotRequired[Used]


class RecoveryPart(Part):
    parameters: NotRequired[Part]
    objective: NotRequired[Part]


class ModelPart(TypedDict):
    path: str


class ConfigFields(TypedDict):
    """The config of the run. Older records lack the parts that were added later; a target has no sparsity."""

    model: ModelPart
    sites: list[str]
    sparsity: Asked | None
    sparsity_of: str
    seed: Count
    criterion: Part
    allocator: Part
    compensation: Part
    schedule: NotRequired[SchedulePart]
    calibration: NotRequired[Part]
    recovery: NotRequired[RecoveryPart]


NamedConfig = Annotated[Mapping[str, Any], ConfigFields, has_named_parts, "a text as every _target_"]


class Sizes(TypedDict):
    """Number of parameters of each base."""

    sites: Count
    blocks: Count
    model: Size


class StageSizes(TypedDict):
    dense: Sizes
    pruned: Sizes


Stages = Annotated[Mapping[str, Mapping[str, int]], StageSizes]


class BaseShares(TypedDict):
    """Measured fraction removed of each base."""

    sites: Removed
    blocks: Removed
    model: Removed


Shares = Annotated[Mapping[str, float], BaseShares]


class KnowledgeNotes(TypedDict):
    """What the knowledge analysis measured. deviations: site -> the deviation at each ratio."""

    measure: str
    ratios: list[float]
    deviations: Mapping[str, list[float]]
    protected: list[str]


class RouteFields(TypedDict):
    """How the MLP of a site is routed: by which class, and among how many experts of how many units."""

    router: str
    experts: Size
    size: Size


RoutedSite = Annotated[Mapping[str, Any], RouteFields]


class NoteKeys(TypedDict):
    active: NotRequired[Used]
    block_statistics: NotRequired[Mapping[str, PerBlock]]
    knowledge: NotRequired[KnowledgeNotes]


Notes = Annotated[Mapping[str, Any], NoteKeys]


class ProtocolKeys(TypedDict):
    text: NotRequired[str]


Protocol = Annotated[Mapping[str, Any], ProtocolKeys]


class GitKeys(TypedDict):
    commit: str
    dirty: bool


Git = Annotated[Mapping[str, Any], GitKeys]


class EnvironmentKeys(TypedDict):
    versions: NotRequired[Mapping[str, str | None]]
    device: NotRequired[str]


Environment = Annotated[Mapping[str, Any], EnvironmentKeys]


class Loss(TypedDict):
    step: Count
    loss: float
    removed: NotRequired[float]


class Round(TypedDict):
    """A round of dynamic recovery: source -> weight, examples drawn, losses: dense, before it, after it.

    gain: the fraction of the summed gaps to the dense model that it closed.
    """

    stage: str
    weights: Mapping[str, float]
    examples: Mapping[str, int]
    dense: Mapping[str, float]
    before: Mapping[str, float]
    after: Mapping[str, float]
    gain: float
    steps: int


class TrainingFields(TypedDict):
    """What recovery trained, and what it cost."""

    trainable: Count
    tokens: Count
    steps: Count
    seconds: Finite
    curve: list[Loss]
    held_out_curve: list[Loss]
    adapters: NotRequired[Count]
    rounds: NotRequired[list[Round]]


Training = Annotated[Mapping[str, Any], TrainingFields]


class Answers(TypedDict):
    """How both models continue one prompt."""

    dense: str
    pruned: str


Said = Annotated[Mapping[str, str], Answers]


def is_plain_name(name: str) -> bool:
    """Return whether a text is the name of a file, without a folder."""
    return bool(name) and not name.startswith(".") and not {"/", "\\", "\0"} & {*name}


class OutcomesKept(TypedDict):
    """The file in the results folder `outcomes` that holds what both models did with every item."""

    file: Annotated[str, is_plain_name, "the name of a file"]
    sha256: str

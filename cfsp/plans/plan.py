"""Plans: the decision, as pure data. Everything before a plan decides, everything after it acts."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfsp.model.sites import OfKind, Site, kind_of
from cfsp.storage.atomic import replacing

FORMAT = 2


@dataclass(frozen=True, eq=False)
class Edit(OfKind, ABC):
    """A decided change to one site."""

    tensors: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that are tensors or None."""

    site: str

    @property
    def kind(self) -> str:
        """The kind of the site."""
        return kind_of(self.site)

    @property
    @abstractmethod
    def stays(self) -> list[int]:
        """[units of the site, units that stay in the model]."""

    @property
    def routing(self) -> dict[str, Any] | None:
        """How the units are chosen per token, for a record; None where a part of them is removed for good."""
        return None

    @abstractmethod
    def check(self, site: Site) -> None:
        """Raise ValueError if the edit was made for another site or cannot be done."""

    @abstractmethod
    def data(self) -> dict[str, Any]:
        """Return the fields that are not tensors, as JSON data."""

    @classmethod
    @abstractmethod
    def of(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Edit:
        """Make the edit that `data` and `tensors` describe."""

    @abstractmethod
    def decision(self) -> Edit:
        """Return the edit without its tensors."""

    def held(self) -> dict[str, Tensor]:
        """Return its tensors, by field, each of the shape [...] that its class describes."""
        found = {name: getattr(self, name) for name in self.tensors}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


@dataclass(frozen=True, eq=False)
class Cut(Edit):
    """Keep these units of a site and remove the others for good.

    fill: constant that replaces each removed channel, folded into the consumer's bias (FLAP's
    compensation); values of kept channels are not used. [units * span]
    consumer: new weights of the consumer for the kept channels (least squares). [kept * span, outputs]
    bias: vector that is added to the consumer's bias. [outputs]
    """

    tensors: ClassVar[tuple[str, ...]] = ("fill", "consumer", "bias")

    units: int
    """Units of the site, so that a plan for another model is refused before a weight changes."""
    keep: tuple[int, ...]
    fill: Tensor | None = None
    consumer: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if list(self.keep) != sorted(set(self.keep)):
            raise ValueError(f"{self.site}: keep must list units in rising order, none twice")
        if self.keep and not 0 <= self.keep[0] <= self.keep[-1] < self.units:
            raise ValueError(f"{self.site}: keep has a unit outside 0..{self.units - 1}")

    @property
    def removed(self) -> tuple[int, ...]:
        kept = set(self.keep)
        return tuple(unit for unit in range(self.units) if unit not in kept)

    @property
    def stays(self) -> list[int]:
        return [self.units, len(self.keep)]

    def check(self, site: Site) -> None:
        if self.units != site.units:
            raise ValueError(
                f"the plan was made for {self.units} units at {self.site!r}; this model has {site.units}"
            )
        channels, kept = self.units * site.span, len(self.keep) * site.span
        if self.fill is not None and self.fill.shape != (channels,):
            raise ValueError(f"{self.site}: fill is {tuple(self.fill.shape)}; expected ({channels},)")
        rows = site.consumers and self.consumer is not None and self.consumer.shape[0]
        if rows and rows != kept:
            raise ValueError(f"{self.site}: consumer has {rows} rows; expected {kept}, one per kept channel")
        if not self.keep and not site.may_go:
            raise ValueError(f"{self.site}: the plan keeps none of its units; expected at least one here")
        run = self.units // site.groups
        if len({sum(unit // run == group for unit in self.keep) for group in range(site.groups)}) > 1:
            raise ValueError(f"{self.site}: expected equally many kept units in each of {site.groups} groups")

    def data(self) -> dict[str, Any]:
        return {"site": self.site, "units": self.units, "keep": self.keep}

    @classmethod
    def of(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Cut:
        return cls(data["site"], data["units"], tuple(data["keep"]), **tensors)

    def decision(self) -> Cut:
        return Cut(self.site, self.units, self.keep)


@dataclass(frozen=True, eq=False)
class Route(Edit):
    """Keep all units of a site; for every token a router chooses those that are used.

    router: class and options of the router (`cfsp.model.routers`). few: so many rows of input, at most, are
    computed with the chosen units alone.
    order: puts the units of an expert beside each other; None: they are. [units]
    weights: name of a parameter of the router -> its value. [...]
    """

    units: int
    router: Mapping[str, Any]
    few: int = 4
    order: Tensor | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def stays(self) -> list[int]:
        return [self.units, self.units]

    @property
    def routing(self) -> dict[str, Any]:
        size = self.router["size"]
        return {"router": self.router["class"], "experts": self.units // size, "size": size}

    def check(self, site: Site) -> None:
        if not site.units_are_neurons:
            raise ValueError(f"{self.site}: only neurons of an MLP can be routed; expected sites=[mlp]")
        if self.units != site.units:
            raise ValueError(
                f"the plan was made for {self.units} units at {self.site!r}; this model has {site.units}"
            )
        if self.units % self.router["size"]:
            raise ValueError(
                f"{self.site}: experts of {self.router['size']} units; expected a size that divides "
                f"{self.units}"
            )
        if self.order is not None and not torch.equal(self.order.sort().values, torch.arange(self.units)):
            raise ValueError(f"{self.site}: order does not have each of the {self.units} units once")

    def data(self) -> dict[str, Any]:
        return {"site": self.site, "units": self.units, "router": dict(self.router), "few": self.few}

    @classmethod
    def of(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Route:
        weights = {name: tensor for name, tensor in tensors.items() if name != "order"}
        order = tensors.get("order")
        return cls(data["site"], data["units"], data["router"], data["few"], order, weights)

    def decision(self) -> Route:
        return Route(self.site, self.units, self.router, self.few)

    def held(self) -> dict[str, Tensor]:
        return dict(self.weights) | ({} if self.order is None else {"order": self.order})


EDITS: Mapping[str, type[Edit]] = {"cut": Cut, "route": Route}
"""Name of an edit in plan.json -> its class."""


@dataclass(frozen=True, eq=False)
class PrunePlan:
    """One edit per site, and notes (JSON data) on how they were decided."""

    edits: tuple[Edit, ...]
    notes: dict[str, Any] = field(default_factory=dict)

    def decision(self) -> PrunePlan:
        """Return the plan without its tensors, to store beside a pruned model whose weights contain them."""
        return PrunePlan(tuple(edit.decision() for edit in self.edits), self.notes)

    def save(self, folder: str | Path) -> None:
        """Write plan.json, and plan.safetensors if any edit carries tensors."""
        path = Path(folder) / "plan.json"
        tensors = {
            f"{edit.site}.{name}": tensor.detach().cpu().contiguous()
            for edit in self.edits
            for name, tensor in edit.held().items()
        }
        if tensors:
            with replacing(path.with_suffix(".safetensors")) as part:
                save_file(tensors, part)
        names = {kind: name for name, kind in EDITS.items()}
        edits = [{"type": names[type(edit)], **edit.data(), "tensors": [*edit.held()]} for edit in self.edits]
        with replacing(path) as part:
            part.write_text(json.dumps({"format": FORMAT, "notes": self.notes, "edits": edits}) + "\n")
        if not tensors:
            path.with_suffix(".safetensors").unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path) -> PrunePlan:
        """Read a plan. Raises ValueError if it is missing, broken or of another format."""
        path = Path(folder) / "plan.json"
        if not path.is_file():
            raise ValueError(f"{folder}: no plan.json; expected a folder that PrunePlan.save wrote")
        try:
            return cls._read(path)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
            raise ValueError(f"{path} is broken ({error}); expected what PrunePlan.save wrote") from error

    @classmethod
    def _read(cls, path: Path) -> PrunePlan:
        data = json.loads(path.read_text())
        if data.get("format") != FORMAT:
            raise ValueError(f"{path}: format {data.get('format')!r}; this version of cfsp reads {FORMAT}")
        has_tensors = any(edit["tensors"] for edit in data["edits"])
        tensors = load_file(path.with_suffix(".safetensors")) if has_tensors else {}
        edits = []
        for edit in data["edits"]:
            held = {name: tensors[f"{edit['site']}.{name}"] for name in edit["tensors"]}
            edits.append(EDITS[edit.get("type", "cut")].of(edit, held))  # older plans have only cuts
        return cls(tuple(edits), data["notes"])

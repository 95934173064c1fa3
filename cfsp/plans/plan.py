"""Plans: the decision, as pure data. Everything before a plan decides, everything after it acts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfsp.storage.atomic import replacing

FORMAT = 2

TENSORS = ("fill", "consumer", "bias")
"""Fields of a `Cut` that are tensors."""


@dataclass(frozen=True, eq=False)
class Cut:
    """Keep these units of a site and remove the others for good.

    fill: constant that stands for every channel of the site in the consumer's bias once the unit
    is gone (FLAP's compensation); the kept channels' values are not used. [units * span]
    consumer: new weights of the consumer for the kept channels (least squares). [kept * span, outputs]
    bias: what is added to the consumer's bias. [outputs]
    """

    site: str
    units: int
    keep: tuple[int, ...]
    fill: Tensor | None = None
    consumer: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if list(self.keep) != sorted(set(self.keep)):
            raise ValueError(f"{self.site}: keep must list units, rising, none twice")
        if self.keep and not 0 <= self.keep[0] <= self.keep[-1] < self.units:
            raise ValueError(f"{self.site}: keep has a unit outside 0..{self.units - 1}")

    @property
    def removed(self) -> tuple[int, ...]:
        kept = set(self.keep)
        return tuple(unit for unit in range(self.units) if unit not in kept)


@dataclass(frozen=True, eq=False)
class PrunePlan:
    """One edit per site, and notes on how they were decided (JSON data)."""

    edits: tuple[Cut, ...]
    notes: dict[str, Any] = field(default_factory=dict)

    def decision(self) -> PrunePlan:
        """The plan without its tensors: what stayed, for beside a model that has them already."""
        return PrunePlan(tuple(Cut(cut.site, cut.units, cut.keep) for cut in self.edits), self.notes)

    def save(self, folder: str | Path) -> None:
        """Write plan.json, and plan.safetensors if any edit carries tensors."""
        path = Path(folder) / "plan.json"
        tensors = {
            f"{cut.site}.{name}": getattr(cut, name).cpu().contiguous()
            for cut in self.edits
            for name in TENSORS
            if getattr(cut, name) is not None
        }
        if tensors:
            with replacing(path.with_suffix(".safetensors")) as part:
                save_file(tensors, part)
        edits = [
            {
                "site": cut.site,
                "units": cut.units,
                "keep": cut.keep,
                "tensors": [name for name in TENSORS if getattr(cut, name) is not None],
            }
            for cut in self.edits
        ]
        with replacing(path) as part:
            part.write_text(json.dumps({"format": FORMAT, "notes": self.notes, "edits": edits}) + "\n")
        if not tensors:
            path.with_suffix(".safetensors").unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path) -> PrunePlan:
        """Read a plan. Raises ValueError if the folder holds none, one of another format, or a broken one."""
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
        edits = tuple(
            Cut(
                edit["site"],
                edit["units"],
                tuple(edit["keep"]),
                **{name: tensors[f"{edit['site']}.{name}"] for name in edit["tensors"]},
            )
            for edit in data["edits"]
        )
        return cls(edits, data["notes"])

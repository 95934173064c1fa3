"""About: a readable description of stored statistics, in a file beside them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cfsp.storage.schema import parse, read_json


@dataclass(frozen=True)
class About:
    """The model and the text that statistics were measured on."""

    model: str
    revision: str | None
    dtype: str
    text: str
    samples: int
    seqlen: int
    seed: int

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> About:
        """Read a file that `write` wrote. Raises ValueError if it is malformed, OSError if it is missing."""
        return parse(cls, read_json(path))

    def __str__(self) -> str:
        model = f"{self.model}@{self.revision}" if self.revision else self.model
        return (
            f"{model} ({self.dtype}), {self.samples} x {self.seqlen} tokens of {self.text}, seed {self.seed}"
        )

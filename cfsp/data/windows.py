"""Windows: cut passages of token ids to a length, hash them, and join them to batches.

Labels of -100 do not count: the loss ignores them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
Example = dict[str, list[int]]


def fingerprint_examples(parts: Iterable[Iterable[Example]] | None) -> str:
    """Return a hash of lists of examples; '' for None."""
    if parts is None:
        return ""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"part")
        for example in part:
            for name, ids in sorted(example.items()):
                kind = "d" if any(isinstance(one, float) for one in ids) else "q"
                digest.update(f"{name} {len(ids)}".encode() + array(kind, ids).tobytes())
    return digest.hexdigest()[:16]


def counts(labels: list[int]) -> bool:
    """Return whether any of the labels counts."""
    return any(label != IGNORED for label in labels)


def single(passages: Iterator[Example], length: int) -> Iterator[Example]:
    """Cut each passage into windows of its own."""
    for passage in passages:
        for first in range(0, len(passage["input_ids"]), length):
            yield {key: ids[first : first + length] for key, ids in passage.items()}


def pack_windows(passages: Iterator[Example], length: int) -> Iterator[Example]:
    """Join passages and cut them into full windows; drop the rest at the end."""
    rest: Example = {"input_ids": [], "labels": []}
    for passage in passages:
        rest = {key: rest[key] + passage[key] for key in rest}
        whole = len(rest["input_ids"]) // length * length
        for first in range(0, whole, length):
            yield {key: ids[first : first + length] for key, ids in rest.items()}
        rest = {key: ids[whole:] for key, ids in rest.items()}


@dataclass(frozen=True)
class Collator:
    """Pads on the right. -> input_ids, attention_mask, labels [batch, tokens]"""

    pad: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Make a batch of examples. -> input_ids, attention_mask, labels, [batch, tokens] each"""
        length = max(len(example["input_ids"]) for example in examples)

        def rows(key: str, filler: int) -> Tensor:
            return torch.tensor(
                [example[key] + [filler] * (length - len(example[key])) for example in examples]
            )

        sizes = torch.tensor([len(example["input_ids"]) for example in examples])
        return {
            "input_ids": rows("input_ids", self.pad),
            "attention_mask": (torch.arange(length) < sizes[:, None]).long(),
            "labels": rows("labels", IGNORED),
        }


def count_passages(passages: Iterable[Example], lost: dict[str, int]) -> Iterator[Example]:
    """Yield the passages and count them in `lost`."""
    for passage in passages:
        lost["passages"] += 1
        yield passage

"""Fingerprints: names for contents: of a model, of batches, of JSON data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> the integers that its bits are read as."""


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """Name a model by its config and, of every weight, name, shape, dtype and the sums of its bits.

    The sums run along each axis, in integers, so they are exact, the same on every machine, and several times
    faster than a hash of all bytes; a change of one element, or of two places, changes them. A fine-tuned or
    pruned copy differs; the same checkpoint agrees from wherever it was loaded.
    """
    config = model.config.to_dict()
    for place in ("_name_or_path", "transformers_version"):
        config.pop(place, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        bits = weight.detach().contiguous().view(BITS[weight.element_size()])
        for axis in range(bits.dim()):
            others = [other for other in range(bits.dim()) if other != axis]
            sums = bits.sum(others, dtype=torch.int64) if others else bits
            digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_batches(batches: Iterable[Mapping[str, Tensor]]) -> str:
    """Name batches by everything in them, and by how they are cut."""
    digest = hashlib.sha256()
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def digest(data: Any) -> str:
    """Twelve hexadecimal digits that stand for JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]

"""Fingerprints: hashes of the content of a model, of batches and of JSON data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> the integer type that its bits are read as."""


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """Return a hash of a model's config and of every weight's name, shape, dtype and sums of bits.

    The sums run along each axis, in integers: they are exact, the same on every machine, and several times
    faster than a hash of all bytes. Changing one element, or swapping two, changes them. A fine-tuned or
    pruned copy has another hash; the same checkpoint has the same hash wherever it was loaded from.
    """
    config = model.config.to_dict()
    for place in ("_name_or_path", "transformers_version"):
        config.pop(place, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for path, module in model.named_modules():  # those that are not the family's describe themselves
        if callable(say := getattr(module, "describe", None)):
            digest.update(f"{path} {json.dumps(say(), sort_keys=True)}".encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        bits = weight.detach().contiguous().view(BITS[weight.element_size()])
        for axis in range(bits.dim()):
            others = [other for other in range(bits.dim()) if other != axis]
            sums = bits.sum(others, dtype=torch.int64) if others else bits
            digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_batches(batches: Iterable[Mapping[str, Tensor]]) -> str:
    """Return a hash of all tensors in the batches, and of how the samples are split into batches."""
    digest = hashlib.sha256()
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def digest(data: Any) -> str:
    """Return a hash of JSON data as twelve hexadecimal digits. The order of keys does not matter."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]

"""Hidden states: store those between two blocks in memory, on the host or on disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from cfsp.checks import check_choice
from cfsp.storage.atomic import reserve

PLACES = ("memory", "host", "disk")
"""Where to store hidden states: on the device that computed them, in the host's memory, in files."""


class Store:
    """Stores tensors in one place. folder: for the files of "disk", which are mapped into memory."""

    def __init__(self, place: str, folder: Path | None = None) -> None:
        self.place, self.folder = place, folder

    def keep(self, tensor: Tensor, name: str, old: Tensor | None = None) -> Tensor:
        """Return the stored tensor [any axes]: in "memory" the tensor itself, elsewhere a copy.

        name: of its file. old: the tensor of this name; it is overwritten if shape and dtype are the same.
        """
        if self.place == "memory":
            return tensor
        if old is None or (old.shape, old.dtype) != (tensor.shape, tensor.dtype):
            old = self._room(tensor, name)
        return old.copy_(tensor)

    def _room(self, like: Tensor, name: str) -> Tensor:
        if self.place == "host":
            return torch.empty(like.shape, dtype=like.dtype)
        assert self.folder is not None, "a store on disk has one"
        path = self.folder / f"{name}.bin"
        path.unlink(missing_ok=True)  # a tensor that is still mapped to the file keeps its values
        reserve(path, like.nbytes)
        room = torch.from_file(str(path), shared=True, size=like.numel(), dtype=like.dtype)
        return room.view(like.shape)


@contextmanager
def storing(place: str, folder: Path | None = None) -> Iterator[Store]:
    """Yield a store, and delete its files afterwards.

    folder: for the files, deleted with them; None: a temporary folder under $TMPDIR.

    Raises:
        ValueError: an unknown place.
    """
    check_choice("hidden_states", place, PLACES)
    if place != "disk":
        yield Store(place)
        return
    folder = folder or Path(tempfile.mkdtemp(prefix="cfsp-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield Store(place, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class States:
    """Hidden states of all batches, [batch, tokens, hidden] each. Rows can be read in any order.

    sizes: number of rows of each batch. Row indices run on from batch to batch.
    """

    def __init__(self, store: Store, name: str, sizes: Sequence[int]) -> None:
        self._store, self._name = store, name
        self._at = [(number, row) for number, size in enumerate(sizes) for row in range(size)]
        self._batches: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        """Return the states of these rows. [rows, tokens, hidden]"""
        return torch.stack([self._batches[number][row] for number, row in (self._at[one] for one in rows)])

    def put(self, number: int, states: Tensor) -> None:
        """Replace the states of one batch."""
        old = self._batches.get(number)
        self._batches[number] = self._store.keep(states, f"{self._name}.{number}", old)

    def clear(self) -> None:
        self._batches.clear()

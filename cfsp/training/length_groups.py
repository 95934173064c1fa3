"""Batches of examples of about the same length, so that little is padding."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

POOL = 50
"""Batches whose examples are sorted by length together: enough that a batch has lengths near each other."""


class LengthGroups(Sampler[int]):
    """Yields the examples' indices: those of a batch have about the same length, batches are in random order.

    The sampler of transformers that groups by length leaves the batches of a pool sorted, so that a training
    ends with its shortest examples. The order depends on the seed and the epoch alone; a resumed training
    goes on in it.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed = lengths, batch, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch. The Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        dice = random.Random(f"{self.seed} {self.epoch}")
        order = dice.sample(range(len(self.lengths)), len(self.lengths))
        whole = len(order) - len(order) % self.batch
        batches = []
        for start in range(0, whole, POOL * self.batch):
            pool = sorted(order[start : min(start + POOL * self.batch, whole)], key=self.lengths.__getitem__)
            batches += [pool[first : first + self.batch] for first in range(0, len(pool), self.batch)]
        dice.shuffle(batches)
        for batch in (*batches, order[whole:]):  # the incomplete batch last, as without groups
            yield from batch

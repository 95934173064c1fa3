"""A model with adapters and LHSPG in it, trained by hand."""

import torch
from families import batches, kinds_of, make
from two_stacks import PAIRS, make_pair, pair_batches

import cfsp
from cfsp.allocators.global_rank import GlobalRank
from cfsp.schedules.decide import allocate, choose
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.schedules.trained import unchanged
from cfsp.training.lhspg import LHSPG
from cfsp.training.lora import Lora


class Bench:
    """A model with adapters and a pruner in it, trained by hand on one batch."""

    def __init__(
        self, family="llama", steps=20, target=0.4, optimizer="adamw", allocator=None, dtype=None, **options
    ):
        paired = family in PAIRS
        self.model = (make_pair if paired else make)(family).to(dtype or torch.float32)
        self.sites = cfsp.find_sites(self.model, kinds_of(self.model))
        state = PartlyCut(self.model, self.sites)
        self.total = sum(site.units * state.cost(site) for site in self.sites)
        self.dearest = max(state.cost(site) for site in self.sites) / self.total
        stats = {site.name: {} for site in self.sites}
        allocator = allocator or GlobalRank()

        def decide(scores):
            widths = allocate(state, self.sites, scores, stats, allocator, round(target * self.total))
            return choose(self.sites, scores, widths, allocator)

        self.lora = Lora(rank=2, alpha=4, dropout=0.0)
        self.pruning = LHSPG(**{"periods": 3, "warmup": 0.2, **options}).attach(
            self.model, self.sites, target, decide
        )
        self.module, _ = self.lora.attach(self.model, unchanged(self.model))
        self.pruning.join(self.module)
        trained = [one for one in self.module.parameters() if one.requires_grad]
        kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        self.optimizer = kinds[optimizer](trained, lr=1e-2)
        self.pruning.steer(self.optimizer)
        self.pruning.begin(steps)
        self.steps, self.done = steps, 0
        self.data = (pair_batches if paired else batches)(count=1)[0]

    def step(self):
        loss = self.module(**{"labels": self.data["input_ids"], **self.data}).loss
        loss.backward()
        frozen = [one for one in self.module.parameters() if not one.requires_grad]
        assert all(one.grad is None for one in frozen)  # no gradient of a base weight is ever formed
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        self.pruning.after_step(self.done)

    def rows_of(self, site, units):
        """The rows of these units in the weights, biases and adapters."""
        rows = self.pruning.rows[site.name]
        found = [*rows.take(units)]
        for added in rows.added(units):
            found += [] if added is None else [added]
        return torch.cat([one.flatten() for one in found])

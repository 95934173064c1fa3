"""Low-rank adapters, with one rank for all blocks or a rank per block."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cfsp.checks import check_choice, check_integer, check_number
from cfsp.machine.environment import is_main
from cfsp.model.adapters import APART
from cfsp.model.blocks import block_modules
from cfsp.model.modeling_routed import routed_mlps
from cfsp.options import hint
from cfsp.training.base import Change, Parameters


@dataclass(frozen=True, kw_only=True)
class Lora(Parameters):
    """W + (alpha / rank) B A on linear layers of the blocks (Hu et al., LoRA, arXiv 2106.09685).

    rank: mean rank of a block; all adapted layers of a block share its rank, and the ranks of all
        blocks sum to blocks x rank exactly. alpha / rank is the same everywhere.
    proportional_to: what a block's rank follows: "uniform"; the block's coarse "importance", as in
        CFSP's importance-guided LoRA (arXiv 2409.13199); or the fraction of its parameters "removed".
        CFSP's rank formula, base rank, alpha and targets are not known here: its code has no
        recovery. Ours: r_b = max(min_rank, r̄ s_b / s̄), the sum made exact by largest remainders.
    targets: names of linear layers (`q_proj`, ...) or null for all linear layers of the blocks. Of a routed
        MLP, the layer that reads the neurons and the router take none.
    merge: add the adapters to the weights when training ends; otherwise they stay separate.
    """

    wraps = True
    rank: int
    alpha: float
    dropout: float
    proportional_to: str = "uniform"
    min_rank: int = 1
    targets: Sequence[str] | None = None
    merge: bool = True

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, least=1)
        check_number("alpha", self.alpha, least=0)
        if not self.alpha:
            raise ValueError("alpha=0: adapters would add nothing; expected a number above 0")
        check_number("dropout", self.dropout, least=0)
        if self.dropout >= 1:
            raise ValueError(f"dropout={self.dropout}: expected a share in [0, 1)")
        check_choice("proportional_to", self.proportional_to, ("uniform", "importance", "removed"))
        check_integer("min_rank", self.min_rank, least=1)
        if self.min_rank > self.rank:
            raise ValueError(f"min_rank={self.min_rank}: expected at most the mean rank={self.rank}")
        if self.targets is not None and not self.targets:
            raise ValueError("targets=[]: expected null or a list of names of linear layers")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"block_angular"} if self.proportional_to == "importance" else ())

    @property
    def apart(self) -> bool:
        return not self.merge

    def check(self, model: PreTrainedModel) -> None:
        self.layers(model)

    def adapted(self, model: PreTrainedModel) -> list[str]:
        return [path for paths in self.layers(model) for path in paths]

    def layers(self, model: PreTrainedModel) -> list[list[str]]:
        """Return paths of the layers to adapt, per block. Raises ValueError if a target is in no block."""
        aside = beside_adapters(model)
        found = [
            [
                f"{path}.{name}"
                for name, module in model.get_submodule(path).named_modules()
                if isinstance(module, nn.Linear | Conv1D) and f"{path}.{name}" not in aside
            ]
            for path in block_modules(model)
        ]
        if self.targets is None:
            return found
        names = sorted({path.rsplit(".", 1)[-1] for paths in found for path in paths})
        for target in self.targets:
            if target not in names:
                raise ValueError(
                    f"adapters on {target!r}: no block has a linear layer of that name; expected some of "
                    f"{', '.join(names)}{hint(target, names)}"
                )
        return [[path for path in paths if path.rsplit(".", 1)[-1] in self.targets] for paths in found]

    def ranks(self, change: Change) -> list[int]:
        """Return the rank of every remaining block."""
        if self.proportional_to == "uniform":
            return [self.rank] * len(change.blocks)
        weights = change.removed if self.proportional_to == "removed" else change.importance
        if weights is None:
            raise ValueError(
                "proportional_to='importance': the plan has no block_angular; expected allocator=cfsp, "
                "criterion.metric=angular with criterion=depth, or proportional_to=removed or uniform"
            )
        return block_ranks(weights, self.rank * len(weights), self.min_rank)

    def attach(self, model: PreTrainedModel, change: Change) -> tuple[nn.Module, dict[str, Any]]:
        ranks = self.ranks(change)
        rank_of = {
            path: rank for paths, rank in zip(self.layers(model), ranks, strict=True) for path in paths
        }
        patterns = {path: re.escape(path) for path in rank_of}
        transposed = any(isinstance(model.get_submodule(path), Conv1D) for path in rank_of)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]  # peft only divides it
            lora_dropout=self.dropout,
            target_modules=sorted(rank_of),
            rank_pattern={patterns[path]: rank for path, rank in rank_of.items()},
            alpha_pattern={patterns[path]: self.alpha * rank / self.rank for path, rank in rank_of.items()},
            fan_in_fan_out=transposed,
            modules_to_save=own_head(model) or None,
            task_type=task_type(model),
        )
        note = {"ranks": ranks, "proportional_to": self.proportional_to, "merged": self.merge}
        with warnings.catch_warnings():  # peft uses a deprecated name of transformers
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return get_peft_model(model, config), note

    def detach(self, trained: nn.Module) -> tuple[PreTrainedModel, PeftModel | None]:
        assert isinstance(trained, PeftModel), "`attach` makes one"
        model = trained.merge_and_unload() if self.merge else trained.get_base_model()
        assert isinstance(model, PreTrainedModel), "`attach` was given one"
        return model, None if self.merge else trained


def with_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return the model of a saved folder with the adapters beside it, if any, merged. Say so on stderr."""
    if not (folder / APART).is_dir():
        return model
    grads = [weight.requires_grad for weight in model.parameters()]
    merged = PeftModel.from_pretrained(model, str(folder / APART)).merge_and_unload()
    assert isinstance(merged, PreTrainedModel), "`from_pretrained` was given one"
    for weight, needed in zip(merged.parameters(), grads, strict=True):
        weight.requires_grad_(needed)
    if is_main():
        print(f"cfsp: the adapters in {folder / APART} are merged into the model", file=sys.stderr)
    return merged.eval()


def beside_adapters(model: PreTrainedModel) -> set[str]:
    """Return the layers that take no adapter: routers, and what reads inputs that a token does not use.

    A routed layer zeroes these inputs itself; an adapter beside it would read them.
    """
    routed = routed_mlps(model)
    routers = {f"{path}.{name}" for path, one in routed.items() for name, _ in one.named_modules()}
    thinned = {path for one in routed.values() if one.router.thins for path in one.producers}
    return routers | thinned | {one.consumer for one in routed.values()}


def task_type(model: PreTrainedModel) -> str | None:
    """Return peft's name for what the model does, by which it chooses its wrapper."""
    if not model.can_generate():
        return None
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def own_head(model: PreTrainedModel) -> list[str]:
    """Return the names of a task head's modules, which are trained whole. A language model's head stays."""
    if model.base_model is model or model.get_output_embeddings() is not None:
        return []
    names = [name for name, module in model.named_children() if module is not model.base_model]
    names = [name for name in names if [*model.get_submodule(name).parameters()]]
    return names + (["pooler"] if getattr(model.base_model, "pooler", None) is not None else [])


def block_ranks(weights: Sequence[float], total: int, least: int) -> list[int]:
    """Return whole ranks in proportion to weights, none below `least`, that sum to `total` exactly.

    Blocks whose share is below `least` get `least`; the others divide the rest in proportion. Largest
    remainders (the first of equals) make the sum exact.

    Raises:
        ValueError: a weight is negative, or all are zero.
    """
    if min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"ranks follow weights of at least 0, not all of them 0; these are {[*weights]}")
    raised: set[int] = set()
    while True:
        free = [block for block in range(len(weights)) if block not in raised]
        pool = total - least * len(raised)
        scale = pool / sum(weights[block] for block in free)
        short = {block for block in free if weights[block] * scale < least}
        if not short:
            break
        raised |= short
    share = {block: weights[block] * scale for block in free}
    ranks = [int(share.get(block, least)) for block in range(len(weights))]
    by_remainder = sorted(free, key=lambda block: (ranks[block] - share[block], block))
    for block in by_remainder[: total - sum(ranks)]:
        ranks[block] += 1
    return ranks

"""Dynamic recovery: train in rounds, on more of what the pruned model has lost most (LoRAShear)."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checks import check_integer, check_number, check_seed
from cfsp.data.examples import Split
from cfsp.data.windows import Example
from cfsp.recovery.base import Recovered, Recovery
from cfsp.recovery.distilled_from import load_teacher, with_teacher
from cfsp.recovery.source_weights import Pools, round_weights, whole_counts
from cfsp.training.base import Setting
from cfsp.training.loop import WithLoop
from cfsp.training.source_losses import source_losses

PRETRAINING, INSTRUCTION = "pretraining", "instruction"


@dataclass(frozen=True)
class MeasuredExamples:
    """The examples, and the dense model's held-out loss of each source. Unpacking gives the examples."""

    split: Split
    dense: Mapping[str, float]

    def __iter__(self) -> Iterator[list[Example]]:
        return iter(self.split)


@dataclass
class Progress:
    """The rounds so far: a row per round for the record, and the notes of their trainings."""

    model: PreTrainedModel
    pools: Pools
    rounds: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)

    def done(self, name: str) -> Any:
        """Return the sum of a number over the trainings so far."""
        return sum(note[name] for note in self.notes)


@dataclass(frozen=True, kw_only=True)
class Dynamic(WithLoop, Recovery):
    """Trains in rounds. Before each, the sources are weighed by how far their loss is above the dense one's.

    Dynamic knowledge recovery (Chen et al., LoRAShear, arXiv:2310.18356, Algorithm 5): first the pretraining
    sources, then the instructions; evaluate, draw more of what is degraded most but a balanced share of
    everything, train, until it converges. The paper gives no formula, no sizes and no test of convergence;
    these are ours:

        gap_s = max(0, loss_s(pruned) - loss_s(dense))          on the held-out examples of source s
        w_s   = (1 - balance) gap_s / sum of gaps + balance / number of sources
        stop when a round lowers the sum of gaps by less than min_gain of itself, or all gaps <= tolerance

    Every round is a whole training of `parameters` with its own warm-up; adapters are merged after it. A
    killed run resumes in the round where it was.

    rounds: at most so many in each of the two stages. per_round: examples that a round draws; `training` may
        go through them more than once.
    balance, min_gain: fractions. tolerance: in nats.
    """

    rounds: int = 4
    per_round: int = 512
    balance: float = 0.3
    min_gain: float = 0.01
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        check_seed("recovery.seed", self.seed)
        for name in ("rounds", "per_round"):
            check_integer(f"recovery.{name}", getattr(self, name), least=1)
        for name in ("balance", "min_gain", "tolerance"):
            check_number(f"recovery.{name}", getattr(self, name), least=0)
        if self.balance > 1:
            raise ValueError(f"recovery.balance={self.balance:g}: expected a fraction in [0, 1]")
        self.check_round()

    @property
    def needs_dense(self) -> bool:
        return self.objective.needs_dense

    def prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statistics: Collection[str]
    ) -> MeasuredExamples:
        """Read the examples, and measure the dense model on what is held out of each source."""
        if self.parameters.frozen or self.parameters.apart:
            raise ValueError(
                "recovery=dynamic trains again after every round; expected recovery/parameters=lora with "
                "merge=true, importance_lora or full"
            )
        load_teacher(self.objective, model, tokenizer)  # only a check: it would take memory until training
        split = self.loop.prepare(model, tokenizer, statistics)
        check_sources(split)
        return MeasuredExamples(split, self.losses(model, tokenizer, split.held_out))

    def check_round(self) -> None:
        """Raise ValueError if a round draws too little for one step."""
        batch, accumulation = self.training.batch_size, self.training.accumulation
        if self.per_round < batch * accumulation:
            raise ValueError(
                f"recovery.per_round={self.per_round} examples are less than one step of "
                f"batch_size={batch} x accumulation={accumulation}; expected at least "
                f"{batch * accumulation}, or less of these"
            )

    def losses(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        held_out: Mapping[str, Sequence[Example]],
    ) -> dict[str, float]:
        """Return the held-out loss of each source."""
        return source_losses(model, tokenizer, self.data, held_out, self.training.batch_size)

    def run(self, setting: Setting, examples: MeasuredExamples) -> Recovered:
        setting, more = with_teacher(setting, self.objective)
        progress = Progress(setting.model, Pools(examples.split.sources))
        for stage, names in self.stages(examples.split).items():
            self.train_stage(stage, names, setting, examples, progress)
        notes = notes_on_rounds(progress, examples.split, self.data.labels)
        return Recovered(progress.model.eval(), notes | more)

    def stages(self, split: Split) -> dict[str, list[str]]:
        """Return stage -> its sources; a stage without sources is left out."""
        instructing = self.data.instructing
        found = {
            PRETRAINING: [name for name in split.held_out if name not in instructing],
            INSTRUCTION: [name for name in split.held_out if name in instructing],
        }
        return {stage: names for stage, names in found.items() if names}

    def train_stage(
        self,
        stage: str,
        names: Sequence[str],
        setting: Setting,
        examples: MeasuredExamples,
        progress: Progress,
    ) -> None:
        """Train rounds on these sources until they stall."""
        held_out = {name: examples.split.held_out[name] for name in names}
        losses = self.losses(progress.model, setting.tokenizer, held_out)
        for _ in range(self.rounds):
            before = gaps(losses, examples.dense)
            if max(before.values()) <= self.tolerance:
                return
            weights = round_weights(before, self.balance)
            counts = self.train_round(names, weights, setting, examples.split, progress)
            after = self.losses(progress.model, setting.tokenizer, held_out)
            gain = 1 - sum(gaps(after, examples.dense).values()) / sum(before.values())
            progress.rounds.append(
                {
                    "stage": stage,
                    "weights": weights,
                    "examples": counts,
                    "dense": {name: examples.dense[name] for name in names},
                    "before": losses,
                    "after": after,
                    "gain": gain,
                    "steps": progress.notes[-1]["steps"],
                }
            )
            losses = after
            if gain < self.min_gain:
                return

    def train_round(
        self,
        names: Sequence[str],
        weights: Mapping[str, float],
        setting: Setting,
        split: Split,
        progress: Progress,
    ) -> dict[str, int]:
        """Train one round. -> source -> the examples that were drawn"""
        number = len(progress.notes)
        drawn = progress.pools.draw(whole_counts(weights, self.per_round))
        indices = [index for mine in drawn.values() for index in mine]
        random.Random(f"{self.seed} {number}").shuffle(indices)
        here = replace(
            setting,
            model=progress.model,
            folder=setting.folder / f"round-{number}",
            follow=shifted(setting.follow, progress.done("steps")),
        )
        trained = self.loop.run(here, split.of(indices, names))
        progress.model = trained.model
        progress.notes.append(trained.notes)
        return {name: len(mine) for name, mine in drawn.items()}


def check_sources(split: Split) -> None:
    """Raise ValueError if a source has nothing to measure its loss on, or nothing to train on."""
    for name, examples in split.held_out.items():
        if not examples or not split.sources[name]:
            raise ValueError(
                f"recovery.data source {name!r} has {len(examples)} of the {len(split.every_held_out)} "
                f"held-out examples and {len(split.sources[name])} of the {len(split.train)} to train on; "
                "expected at least one of both: a larger recovery.data.held_out, or more of this source"
            )


def gaps(losses: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float]:
    """Return source -> by how much its loss is above the dense model's, at least 0."""
    return {name: max(0.0, loss - dense[name]) for name, loss in losses.items()}


def shifted(follow: Callable[[Mapping[str, float], int], None], steps: int) -> Callable[..., None]:
    """Return the function that follows a training, called with steps that go on from so many."""
    return lambda values, step: follow(values, step + steps)


def notes_on_rounds(progress: Progress, split: Split, labels: Sequence[str]) -> dict[str, Any]:
    """Return the notes for the record: those of all rounds together, and a row per round."""
    curves: dict[str, list[dict[str, Any]]] = {"curve": [], "held_out_curve": []}
    done = {"step": 0, "tokens": 0, "seconds": 0.0}
    for note in progress.notes:
        for name, rows in curves.items():
            rows += [
                row | {key: row[key] + more for key, more in done.items() if key in row} for row in note[name]
            ]
        done = {
            "step": done["step"] + note["steps"],
            "tokens": done["tokens"] + note["tokens"],
            "seconds": done["seconds"] + note["seconds"],
        }
    last = progress.notes[-1] if progress.notes else {}
    return last | {
        "trainable": last.get("trainable", 0),
        "adapters": 0,
        "examples": sum(sum(row["examples"].values()) for row in progress.rounds),
        "held_out": len(split.every_held_out),
        "data": [*labels],
        "lost": split.lost,
        "steps": done["step"],
        "tokens": done["tokens"],
        "seconds": round(done["seconds"], 3),
        "rounds": progress.rounds,
        **curves,
    }

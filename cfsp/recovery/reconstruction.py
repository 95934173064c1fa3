"""Local reconstruction: train one sub-layer after the other to reproduce the dense outputs."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from cfsp.bars import Work, task
from cfsp.checks import check_choice, check_integer, check_number
from cfsp.data.examples import Examples, Split
from cfsp.data.texts import Text
from cfsp.data.windows import Example
from cfsp.machine.environment import processes
from cfsp.machine.memory import peak_bytes, reset_peak
from cfsp.model.blocks import block_modules, check_positions, is_causal, places_of
from cfsp.model.weights import weight_of
from cfsp.passes.walk import walking
from cfsp.plans.subject import Follow
from cfsp.recovery.base import Recovered, Recovery
from cfsp.recovery.lessons import ORDER, Goals, Lesson
from cfsp.training.base import Setting
from cfsp.training.early_stopping import HeldOutCurve, curve_row
from cfsp.training.resume import keep_block, restore_block

Note = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Recovery):
    """Tunes each sub-layer alone: min over its weights of E |f(x) - t|², block by block, without labels.

    It tunes the weights of the sub-layer's linear layers, and with `norms` those of its norms.

    x is the block's input in the pruned model. The blocks before are tuned already, so errors do not
    accumulate. Attention and MLP are tuned separately, as Wagner et al. found best (arXiv 2510.14444; only
    the abstract was available, so steps and rates are ours). No gradient leaves the block. Errors are
    relative to the mean square of the dense model's values.

    target: "stream" compares the outputs of the pruned and the dense block, relative to the dense block's
        change of the residual stream. While attention is tuned, the MLP returns the dense MLP's outputs. So
        attention corrects only its own error and those before it, also if both run in parallel.
        "sublayer" compares the sub-layer's outputs with those of the dense one on the dense model's inputs.
    norms: false leaves norms as they are: a linear layer after a norm can learn the norm's scale. true also
        trains the weights and biases of the norms before, in and after the sub-layer.
    sublayers: "cut" tunes those that lost units, "all" the others too.
    steps: for each sub-layer, with `batch_size` examples each. Examples beyond the last step are not read.
    evaluate_every: steps between evaluations on the held-out part. The best weights are kept; they may be
        those before the first step. patience: evaluations without a better one before it stops; null: never.
    hidden_states: where to store the hidden states of all examples: in the host's "memory" or on "disk".

    Weights are tuned in float32 and rounded to the model's dtype. transformers' Trainer does not fit: it
    needs a model that runs from end to end.
    """

    needs_dense = True
    data: Examples
    target: str
    sublayers: str
    steps: int
    learning_rate: float
    batch_size: int
    warmup: int
    scheduler: str
    evaluate_every: int
    patience: int | None
    hidden_states: str
    seed: int
    norms: bool = False

    def __post_init__(self) -> None:
        check_choice("recovery.target", self.target, ("stream", "sublayer"))
        check_choice("recovery.sublayers", self.sublayers, ("cut", "all"))
        check_choice("recovery.hidden_states", self.hidden_states, ("memory", "disk"))
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("evaluate_every", 1)):
            check_integer(f"recovery.{name}", getattr(self, name), least)
        if self.patience is not None:
            check_integer("recovery.patience", self.patience, least=1)
        check_number("recovery.learning_rate", self.learning_rate, least=0, most=torch.finfo().max)

    def reads(self) -> list[Text]:
        return self.data.texts

    def prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statistics: Collection[str]
    ) -> Split:
        if not is_causal(model):
            raise ValueError(f"recovery trains causal language models, not {type(model).__name__}")
        if processes() > 1:
            raise ValueError("recovery=reconstruction runs in one process; expected no torchrun")
        check_positions(model, self.data.window, "recovery.data.window")
        self.optimizer([nn.Parameter(torch.zeros(1))])
        split = self.data.split(tokenizer)
        train, held_out = split
        if not held_out:
            raise ValueError("recovery.data.held_out=0: expected some examples to judge the weights by")
        if len(train) < self.batch_size:
            raise ValueError(
                f"{len(train)} examples to train on are less than recovery.batch_size={self.batch_size}; "
                "expected more data, or less of these"
            )
        return split.of([*range(min(len(train), self.steps * self.batch_size))])

    def optimizer(self, weights: Sequence[Tensor]) -> tuple[torch.optim.Optimizer, Any]:
        """Return Adam and its schedule. Raises ValueError if transformers has no such scheduler."""
        adam = torch.optim.Adam(weights, self.learning_rate)
        return adam, get_scheduler(self.scheduler, adam, self.warmup, self.steps)

    def run(self, setting: Setting, examples: Split) -> Recovered:
        """Tune the model, from the first block without weights in setting.folder on.

        Raises:
            ValueError: channels of the residual stream were cut; an error or a gradient is NaN or infinite.
        """
        if setting.change.residual_cut:
            raise ValueError(
                "hidden states of the dense model are wider: channels of the residual stream were cut; "
                "expected sites without hidden"
            )
        reset_peak(str(setting.model.device))
        train, held_out = examples
        wanted = self.wanted(setting)
        if not any(wanted):
            print("cfsp: no sub-layer lost units; reconstruction has nothing to do", file=sys.stderr)
        notes = self.tune(setting, examples, wanted) if any(wanted) else []
        training = {
            "trainable": sum(note["trainable"] for note in notes),
            "examples": len(train),
            "held_out": len(held_out),
            "data": self.data.labels,
            "lost": examples.lost,
            "tokens": sum(len(one["input_ids"]) for one in train) if notes else 0,
            "batch": self.batch_size,
            **sum_of_notes(notes),
            "peak_bytes": peak_bytes(setting.model.device),
        }
        return Recovered(setting.model, training)

    def wanted(self, setting: Setting) -> list[list[str]]:
        """Return the kinds of sub-layers to tune in every block that is left."""
        teacher, ours = teacher_of(setting), block_modules(setting.model)
        places, dense = places_of(setting.model, ours[0]), block_modules(teacher)
        found = []
        for path, number in zip(ours, setting.change.blocks, strict=True):
            kinds = []
            for kind in (kind for kind in ORDER if kind in places):
                consumer = places[kind].consumer
                left = weight_of(setting.model.get_submodule(f"{path}.{consumer}"))
                whole = weight_of(teacher.get_submodule(f"{dense[number]}.{consumer}"))
                if left.numel() and (self.sublayers == "all" or left.shape != whole.shape):
                    kinds.append(kind)  # a sub-layer that was removed has no weights to tune
            found.append(kinds)
        return found

    def tune(self, setting: Setting, examples: Split, wanted: Sequence[Sequence[str]]) -> list[Note]:
        """Tune block by block, with both models in step. -> a note for each tuned sub-layer"""
        train, held_out = examples
        ids, counted = rows_of([*train, *held_out])
        batches = [{"input_ids": part} for part in ids.split(self.batch_size)]
        place, folder = {"memory": "host", "disk": "disk"}[self.hidden_states], setting.folder
        places = places_of(setting.model, block_modules(setting.model)[0])
        apart, notes = self.target == "sublayer", []
        last = max(index for index, kinds in enumerate(wanted) if kinds)
        total, since = self.steps * sum(map(len, wanted)), time.perf_counter()
        with (
            walking(teacher_of(setting), batches, place, folder / "states-dense") as dense,
            walking(setting.model, batches, place, folder / "states-pruned") as pruned,
            task("reconstruction", "step", total) as shown,
        ):
            for index, number in enumerate(setting.change.blocks[: last + 1]):
                while dense.at < number:  # blocks that the pruned model lacks
                    dense.advance()
                kinds, file = wanted[index], folder / f"block-{index}.safetensors"
                goals = Goals.of(dense, pruned, counted, places, kinds, apart, self.norms)
                if (tuned := restore_block(pruned.block, file)) is not None:
                    notes += tuned
                    shown.advance(self.steps * len(kinds))
                elif kinds:
                    for kind in kinds:
                        lesson, before = Lesson(goals, kind), sum(note["steps"] for note in notes)
                        notes.append(self.teach(lesson, len(train), before, setting.follow, shown))
                        notes[-1]["seconds"] = round(time.perf_counter() - since, 3)  # with the walks before
                        since = time.perf_counter()
                    keep_block(pruned.block, notes[-len(kinds) :], file)
                pruned.advance()
        return notes

    def teach(self, lesson: Lesson, examples: int, before: int, follow: Follow, shown: Work) -> Note:
        """Tune one sub-layer on the first `examples` rows; evaluate on the others. before: steps so far."""
        start, curve, looks, step = time.perf_counter(), [], HeldOutCurve(self.patience), 0
        first = kept = lesson.learned()
        looks.add(0, lesson.judge(examples))
        for step, loss, rate in self.steps_between_looks(lesson, examples, shown):
            if looks.add(step, lesson.judge(examples)):
                kept = lesson.learned()
            curve.append(curve_row(step, loss, rate, round(time.perf_counter() - start, 3)))
            told = {"loss": loss, "eval_loss": looks.rows[-1]["loss"], "learning_rate": rate}
            follow(told, before + step)
            if looks.should_stop:
                break
        after = lesson.put(kept, examples)
        if after > looks.rows[0]["loss"]:  # rounding to the model's dtype cost more than training gained
            after = lesson.put(first, examples)
        best = looks.best
        assert best is not None, "the first look was before the first step"
        return {
            "block": lesson.index,
            "kind": lesson.kind,
            "trainable": sum(weight.numel() for weight in lesson.weights.values()),
            "before": looks.rows[0]["loss"],
            "after": after,
            "steps": step,
            "best_step": best["step"],
            "curve": curve,
            "held_out_curve": looks.rows,
        }

    def steps_between_looks(
        self, lesson: Lesson, examples: int, shown: Work
    ) -> Iterator[tuple[int, float, float]]:
        """Take all steps. At each evaluation, yield the step, the mean error since the last, and the rate."""
        batches = shuffled(examples, self.batch_size, f"{self.seed} {lesson.name}")
        adam, schedule = self.optimizer([*lesson.weights.values()])
        losses: list[float] = []
        for step in range(1, self.steps + 1):
            rate = schedule.get_last_lr()[0]
            losses.append(take_step(lesson, next(batches), adam, step))
            schedule.step()
            shown.advance()
            if step % self.evaluate_every == 0 or step == self.steps:
                yield step, sum(losses) / len(losses), rate
                losses.clear()


def teacher_of(setting: Setting) -> PreTrainedModel:
    """Return the dense model. Raises ValueError if there is none."""
    if setting.dense is None:
        raise ValueError("reconstruction learns from the dense model; expected it beside the pruned one")
    return setting.dense


def rows_of(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return tokens padded on the right, and which of them are not padding. [rows, tokens] each"""
    rows = [torch.tensor(example["input_ids"]) for example in examples]
    sizes = torch.tensor([len(row) for row in rows])
    ids = pad_sequence(rows, batch_first=True)  # with token 0; no real token attends to it
    return ids, torch.arange(ids.shape[1]) < sizes[:, None]


def shuffled(examples: int, size: int, seed: str) -> Iterator[list[int]]:
    """Yield full batches of row indices, epoch after epoch, each epoch in another order."""
    dice, order = random.Random(seed), list(range(examples))
    while True:
        dice.shuffle(order)
        for first in range(0, examples - size + 1, size):
            yield order[first : first + size]


def take_step(lesson: Lesson, rows: list[int], adam: torch.optim.Optimizer, step: int) -> float:
    """Take one optimizer step. -> the error before it. Raises ValueError before a NaN reaches weights."""
    error = lesson.error(rows)
    adam.zero_grad()
    error.backward()
    norm = get_total_norm([grad for weight in lesson.weights.values() if (grad := weight.grad) is not None])
    for what, value in (("error", error), ("gradient", norm)):
        if not value.isfinite():
            raise ValueError(
                f"reconstruction of {lesson.name}, step {step}: the {what} is NaN or infinite; the blocks "
                "before are kept. Expected a lower recovery.learning_rate, or finite weights"
            )
    adam.step()
    return error.item()


def sum_of_notes(notes: Sequence[Note]) -> dict[str, Any]:
    """Return the training data of all notes. Steps and seconds run on from curve to curve."""
    steps, seconds, found = 0, 0.0, {"curve": [], "held_out_curve": []}
    for note in notes:
        name = f"block {note['block']}, {note['kind']}"
        for key, rows in found.items():
            for row in note[key]:
                on = {"seconds": round(seconds + row["seconds"], 3)} if "seconds" in row else {}
                rows.append({**row, **on, "step": steps + row["step"], "sublayer": name})
        steps, seconds = steps + note["steps"], seconds + note["seconds"]
    short = [{key: value for key, value in note.items() if key not in found} for note in notes]
    return {"steps": steps, "seconds": round(seconds, 3), "sublayers": short, **found}

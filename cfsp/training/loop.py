"""The one training loop: any parameters for any objective on any examples, with or without a pruner."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from cfsp.data.examples import Split, TrainingData
from cfsp.machine.memory import peak_bytes, reset_peak
from cfsp.machine.process import environment_kept
from cfsp.model.blocks import check_positions
from cfsp.training.arguments import Training
from cfsp.training.base import Change, Objective, Parameters
from cfsp.training.pruner import Pruning
from cfsp.training.sharding import gathered, outline
from cfsp.training.trainer import LossTrainer, outcome

Follow = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True)
class Trained:
    """The trained model; what training was and cost, as JSON data; the adapters, if they were kept."""

    model: PreTrainedModel
    notes: dict[str, Any]
    adapters: nn.Module | None


@dataclass(frozen=True)
class Loop:
    """Train `parameters` for an `objective` on `data`. name: of the config group, for messages.

    Training that was killed goes on from its last whole checkpoint.
    """

    parameters: Parameters
    objective: Objective
    data: TrainingData
    training: Training
    seed: int
    name: str = "recovery"

    def prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statistics: Collection[str]
    ) -> Split:
        """Read the examples, and check all that can be checked before anything costly runs.

        statistics: what calibration will measure. Raises ValueError with what would be accepted.
        """
        self.data.task.check(model, tokenizer, self.name)
        self.objective.of(self.data.task)
        check_positions(model, self.data.window, f"{self.name}.data.window")
        self.parameters.check(model)
        self.training.check(model.device)
        self.training.for_trainer(Path(), model.device, self.seed, held_out=True)
        if missing := self.parameters.needs - set(statistics):
            raise ValueError(
                f"{self.name} follows {', '.join(sorted(missing))}, which nothing here measures; expected "
                "allocator=cfsp, criterion.metric=angular with criterion=depth, or "
                f"{self.name}.parameters.proportional_to=removed or uniform"
            )
        split = self.data.split(tokenizer)
        step = self.training.batch_size * self.training.accumulation
        if len(split.train) < step:
            raise ValueError(
                f"{len(split.train)} examples to train on are less than one step of "
                f"batch_size={self.training.batch_size} x accumulation={self.training.accumulation}; "
                "expected more data, or less of these"
            )
        return split

    def run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Split,
        folder: Path,
        change: Change,
        dense: PreTrainedModel | None = None,
        follow: Follow = lambda values, step: None,
        pruning: Pruning | None = None,
    ) -> Trained:
        """Train from the last whole checkpoint in the folder, or from the start.

        Raises:
            ValueError: the loss or a gradient is NaN or infinite; the last good checkpoint stays.
        """
        objective = self.objective.of(self.data.task)
        objective.check(change)
        if model.device.type == "cuda":
            torch.cuda.set_device(model.device)
        reset_peak(str(model.device))
        set_seed(self.seed)  # whatever was drawn before: adapters and batches depend on the seed alone
        best = pruning is None  # while masks close, earlier models are better for being larger
        arguments = self.training.for_trainer(folder, model.device, self.seed, bool(examples.held_out), best)
        dense = None if dense is None else dense.to(arguments.device)

        def loss(
            wrapped: nn.Module, inputs: Mapping[str, Tensor], labels_in_step: Tensor | int | None
        ) -> Tensor:
            return objective.loss(wrapped, inputs, dense, change, labels_in_step)

        before = settings_of(model)
        module, notes = self.parameters.attach(model, change)
        for group in pruning.groups() if pruning is not None else ():
            for scores in group["params"]:
                scores.requires_grad_(True)
        shape = outline(module) if self.training.sharded else None
        trainable = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
        with environment_kept():  # accelerate leaves its choices there, for the next one to find
            trainer = LossTrainer(
                loss=loss,
                follow=follow,
                pruning=pruning,
                shown_as=self.name,
                model=module,
                args=arguments,
                train_dataset=examples.train,
                eval_dataset=examples.held_out or None,
                data_collator=self.data.collator(tokenizer),
            )
            if best and examples.held_out and self.training.patience is not None:
                trainer.add_callback(EarlyStoppingCallback(self.training.patience))
            trainer.go_on()
        if shape is not None:
            trainer.accelerator.free_memory()  # the optimizer's, for the whole model
            module = gathered(trainer.model, shape)
        trained, adapters = self.parameters.detach(module)
        restore_settings(trained, before)
        found = {
            "trainable": trainable,
            "adapters": 0 if adapters is None else trainable,
            "examples": len(examples.train),
            "held_out": len(examples.held_out),
            "data": self.data.labels,
            "lost": examples.lost,
            **outcome(trainer, arguments),
            "peak_bytes": peak_bytes(model.device),
            **notes,
        }
        return Trained(trained.eval(), found, adapters)


def settings_of(model: PreTrainedModel) -> dict[str, Any]:
    """What the trainer sets on a model besides weights: a saved model would say so."""
    grads = [weight.requires_grad for weight in model.parameters()]
    return {"use_cache": model.config.use_cache, "grads": grads}


def restore_settings(model: PreTrainedModel, before: dict[str, Any]) -> None:
    """Give back what `settings_of` found. Adapters that stay apart come last and have no entry."""
    model.config.use_cache = before["use_cache"]
    for weight, needed in zip(model.parameters(), before["grads"], strict=False):
        weight.requires_grad_(needed)

"""The training loop of recoveries and schedules: any parameters, any objective, any examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from cfsp.data.examples import Split, TrainingData
from cfsp.data.texts import Text
from cfsp.machine.memory import peak_bytes, reset_peak
from cfsp.machine.process import environment_kept
from cfsp.model.adapters import Adapters
from cfsp.model.blocks import check_positions
from cfsp.training.arguments import Training
from cfsp.training.base import Objective, Parameters, Setting
from cfsp.training.early_stopping import StopEarly
from cfsp.training.length_groups import LengthGroups
from cfsp.training.pruner import Pruning
from cfsp.training.sharding import gathered, outline
from cfsp.training.trainer import LossTrainer, outcome


@dataclass(frozen=True)
class Trained:
    """The trained model. notes: how and at what cost, as JSON data. adapters: None if merged."""

    model: PreTrainedModel
    notes: dict[str, Any]
    adapters: Adapters | None


@dataclass(frozen=True)
class Loop:
    """Trains `parameters` for an `objective` on `data`, with transformers' Trainer.

    A killed training resumes from its last checkpoint. name: the config group, for messages.
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
        """Read the examples. Check everything that can be checked before anything costly runs.

        statistics: names of the statistics to be measured. Raises ValueError with what would be accepted.
        """
        self.data.task.check(model, tokenizer, self.name)
        self.objective.of(self.data.task)
        check_positions(model, self.data.window, f"{self.name}.data.window")
        self.parameters.check(model)
        self.training.check(model.device, self.name)
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

    def run(self, setting: Setting, examples: Split, pruning: Pruning | None = None) -> Trained:
        """Train from the last complete checkpoint in setting.folder, or from the start.

        pruning: scores in the model that are trained too. The last model is then the result, not the best
            one on held-out examples: while masks close, earlier models are better because they are larger.

        Raises:
            ValueError: the loss or a gradient is NaN or infinite; the last good checkpoint stays.
        """
        self.objective.of(self.data.task).check(setting.change)
        device, held_out = setting.model.device, bool(examples.every_held_out)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        reset_peak(str(device))
        set_seed(self.seed)  # adapters and batches depend only on the seed
        arguments = self.training.for_trainer(setting.folder, device, self.seed, held_out, pruning is None)
        grads = [weight.requires_grad for weight in setting.model.parameters()]
        use_cache = setting.model.config.use_cache  # the Trainer turns it off, and the config is saved
        module, notes = self.parameters.attach(setting.model, setting.change)
        if pruning is not None:
            pruning.join(module)
        for group in pruning.groups() if pruning is not None else ():
            for scores in group["params"]:
                scores.requires_grad_(True)  # adapters freeze all that is there
        trainable = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
        module, training = self.train(module, setting, examples, arguments, pruning)
        model, adapters = self.parameters.detach(module)
        model.config.use_cache = use_cache
        for weight, needed in zip(model.parameters(), grads, strict=False):
            weight.requires_grad_(needed)
        training = {
            "trainable": trainable,
            "adapters": 0 if adapters is None else trainable,
            **self.notes_on(examples),
            **training,
            "peak_bytes": peak_bytes(device),
            **notes,
        }
        return Trained(model.eval(), training, adapters)

    def notes_on(self, examples: Split) -> dict[str, Any]:
        """Return notes on the examples, as JSON data."""
        return {
            "examples": len(examples.train),
            "held_out": len(examples.every_held_out),
            "data": self.data.labels,
            "lost": examples.lost,
        }

    def train(
        self,
        module: nn.Module,
        setting: Setting,
        examples: Split,
        arguments: TrainingArguments,
        pruning: Pruning | None,
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Train the weights that require gradients. -> the module, unsharded, and the training's outcome"""
        shape = outline(module) if self.training.sharded else None
        objective = self.objective.of(self.data.task)
        dense = None if setting.dense is None else setting.dense.to(arguments.device)  # pyright: ignore[reportArgumentType]  # decorated without its self

        def loss(
            model: nn.Module, inputs: Mapping[str, Tensor], labels_in_step: Tensor | int | None
        ) -> Tensor:
            return objective.loss(model, inputs, dense, setting.change, labels_in_step)

        with environment_kept():  # accelerate writes settings there, which the next Trainer would read
            trainer = LossTrainer(
                loss=loss,
                follow=setting.follow,
                pruning=pruning,
                stage=self.name,
                order=self.order(examples),
                model=module,
                args=arguments,
                train_dataset=examples.train,
                eval_dataset=examples.every_held_out or None,
                data_collator=self.data.collator(setting.tokenizer),
            )
            if pruning is None and examples.every_held_out and self.training.patience is not None:
                trainer.add_callback(StopEarly(self.training.patience))
            trainer.go_on()
        if shape is not None:
            trainer.accelerator.free_memory()  # the optimizer's, for the whole model
            assert trainer.model is not None, "it has been trained"
            module = gathered(trainer.model, shape)
        return module, outcome(trainer, arguments)

    def order(self, examples: Split) -> LengthGroups | None:
        """Return the order of the examples; None: the Trainer's own."""
        if not self.training.by_length:
            return None
        lengths = [len(example["input_ids"]) for example in examples.train]
        return LengthGroups(lengths, self.training.batch_size, self.seed)


@dataclass(frozen=True, kw_only=True)
class WithLoop:
    """The options of everything that trains in the loop: recoveries and schedules."""

    group: ClassVar[str] = "recovery"
    """The config group, for messages."""

    parameters: Parameters
    objective: Objective
    data: TrainingData
    training: Training
    seed: int

    @property
    def loop(self) -> Loop:
        """The training loop with these parts."""
        return Loop(self.parameters, self.objective, self.data, self.training, self.seed, self.group)

    @property
    def trains_head(self) -> bool:
        """Whether it trains a head that the checkpoint lacks: not with a teacher, whose head is as random."""
        return not self.objective.needs_dense

    def reads(self) -> list[Text]:
        """Return the texts that it trains on."""
        return self.data.texts

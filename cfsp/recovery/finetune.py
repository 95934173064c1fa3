"""Fine-tuning with Hugging Face's Trainer: any parameters, any objective, any examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from cfsp.checks import check_seed
from cfsp.data.examples import Examples, Split
from cfsp.data.texts import Text
from cfsp.machine.memory import peak_bytes, reset_peak
from cfsp.machine.process import environment_kept
from cfsp.model.blocks import check_positions, is_causal
from cfsp.recovery.base import Recovered, Recovery, Setting
from cfsp.training.arguments import Training
from cfsp.training.base import Objective, Parameters
from cfsp.training.early_stopping import StopEarly
from cfsp.training.sharding import gathered, outline
from cfsp.training.trainer import LossTrainer, outcome


@dataclass(frozen=True, kw_only=True)
class Finetune(Recovery):
    """Trains `parameters` for an `objective` on `data`.

    A killed run resumes from its last checkpoint in setting.folder.
    """

    parameters: Parameters
    objective: Objective
    data: Examples
    training: Training
    seed: int

    def __post_init__(self) -> None:
        check_seed("recovery.seed", self.seed)

    @property
    def needs_dense(self) -> bool:
        return self.objective.needs_dense

    @property
    def keeps_apart(self) -> bool:
        return self.parameters.apart

    def reads(self) -> list[Text]:
        return self.data.texts

    def prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statistics: Collection[str]
    ) -> Split:
        if not is_causal(model):
            raise ValueError(f"recovery trains causal language models, not {type(model).__name__}")
        check_positions(model, self.data.window, "recovery.data.window")
        self.parameters.check(model)
        self.training.check(model.device)
        self.training.for_trainer(Path(), model.device, self.seed, held_out=True)
        if missing := self.parameters.needs - set(statistics):
            raise ValueError(
                f"recovery follows {', '.join(sorted(missing))}, which nothing here measures; expected "
                "allocator=cfsp, criterion.metric=angular with criterion=depth, or "
                "recovery.parameters.proportional_to=removed or uniform"
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

    def run(self, setting: Setting, examples: Split) -> Recovered:
        """Train from the last complete checkpoint in setting.folder, or from the start.

        Raises:
            ValueError: the loss or a gradient is NaN or infinite; the last good checkpoint stays.
        """
        self.objective.check(setting.change)
        device = setting.model.device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        reset_peak(str(device))
        set_seed(self.seed)  # adapters and batches depend only on the seed
        arguments = self.training.for_trainer(setting.folder, device, self.seed, bool(examples.held_out))
        grads = [weight.requires_grad for weight in setting.model.parameters()]
        use_cache = setting.model.config.use_cache  # the Trainer turns it off, and the config is saved
        module, notes = self.parameters.attach(setting.model, setting.change)
        trainable = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
        module, training = self.train(module, setting, examples, arguments)
        model, adapters = self.parameters.detach(module)
        model.config.use_cache = use_cache
        for weight, needed in zip(model.parameters(), grads, strict=False):
            weight.requires_grad_(needed)
        training = {
            "trainable": trainable,
            "adapters": 0 if adapters is None else trainable,
            "examples": len(examples.train),
            "held_out": len(examples.held_out),
            "data": self.data.labels,
            "lost": examples.lost,
            **training,
            "peak_bytes": peak_bytes(device),
            **notes,
        }
        return Recovered(model.eval(), training, adapters)

    def train(
        self, module: nn.Module, setting: Setting, examples: Split, arguments: TrainingArguments
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Train the weights that require gradients. -> the module, unsharded, and the training's outcome"""
        shape = outline(module) if self.training.sharded else None
        dense = None if setting.dense is None else setting.dense.to(arguments.device)  # pyright: ignore[reportArgumentType]  # decorated without its self

        def loss(
            model: nn.Module, inputs: Mapping[str, Tensor], labels_in_step: Tensor | int | None
        ) -> Tensor:
            return self.objective.loss(model, inputs, dense, setting.change, labels_in_step)

        with environment_kept():  # accelerate writes settings there, which the next Trainer would read
            trainer = LossTrainer(
                loss=loss,
                follow=setting.follow,
                model=module,
                args=arguments,
                train_dataset=examples.train,
                eval_dataset=examples.held_out or None,
                data_collator=self.data.collator(setting.tokenizer),
            )
            if examples.held_out and self.training.patience is not None:
                trainer.add_callback(StopEarly(self.training.patience))
            trainer.go_on()
        if shape is not None:
            trainer.accelerator.free_memory()  # the optimizer's, for the whole model
            assert trainer.model is not None, "it has been trained"
            module = gathered(trainer.model, shape)
        return module, outcome(trainer, arguments)

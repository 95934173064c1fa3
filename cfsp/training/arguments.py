"""The arguments of training."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from cfsp.checks import check_choice, check_integer, check_number
from cfsp.machine.environment import processes
from cfsp.options import Checked


class OneDevice(TrainingArguments):
    """Those of transformers, for one device: several visible GPUs are no wish for DataParallel."""

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


ALWAYS = {
    "prediction_loss_only": True,
    "save_total_limit": 2,
    "restore_callback_states_from_checkpoint": True,
    "logging_strategy": "steps",
    "logging_first_step": True,
    "logging_nan_inf_filter": False,
    "include_num_input_tokens_seen": "non_padding",
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "disable_tqdm": True,  # `cfsp.bars` shows the steps
    "report_to": "none",
}
"""What transformers' Trainer is told whatever the config says."""


@dataclass(frozen=True, kw_only=True)
class Training(Checked):
    """How long and how fast to train, and in what steps.

    batch_size: examples on one device at a time; `accumulation` batches make an optimizer step.
    max_steps: optimizer steps; null goes by epochs. warmup: steps of linearly rising learning rate.
    evaluate_every: steps between evaluations on the held-out part, and between checkpoints.
    patience: evaluations without a better held-out loss before training stops; null never stops early.
        If anything is held out, the best model is the result.
    precision: null is the model's own; "bf16" or "fp16" multiply in that and keep weights as they are.
    by_length: put examples of about the same length into a batch, so that less of it is padding.
    checkpointing: store fewer activations, at the cost of a second forward pass.
    arguments: any other option of transformers' TrainingArguments, except deepspeed. With `fsdp`, or under
        `accelerate launch` with an FSDP config, each process trains a shard of every weight and gets the
        whole model at the end.
    """

    epochs: float
    max_steps: int | None
    learning_rate: float
    batch_size: int
    accumulation: int
    warmup: int
    scheduler: str
    weight_decay: float
    evaluate_every: int
    patience: int | None
    precision: str | None = None
    by_length: bool = False
    checkpointing: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "evaluate_every"):
            check_integer(name, getattr(self, name), least=1)
        check_integer("warmup", self.warmup, least=0)
        for name in ("max_steps", "patience"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), least=1)
        for name in ("epochs", "learning_rate", "weight_decay"):
            check_number(name, getattr(self, name), least=0)
        if not self.epochs and self.max_steps is None:
            raise ValueError("epochs=0: nothing would be trained; expected more, or max_steps")
        check_choice("precision", self.precision, (None, "bf16", "fp16"))

    def check(self, device: torch.device, group: str = "recovery") -> None:
        """Raise ValueError if this device cannot train so, or the model could not be gathered afterwards.

        group: the config group, for messages.
        """
        if self.precision == "fp16" and device.type == "cpu":
            raise ValueError(
                f"{group}.training.precision=fp16: a CPU trains in float32 or bfloat16; expected bf16 or null"
            )
        if self.arguments.get("deepspeed") or asked_for("ACCELERATE_USE_DEEPSPEED"):
            raise ValueError(
                f"{group}.training.arguments.deepspeed: its pieces cannot be put together here to measure "
                "and save the model; expected fsdp, checkpointing=true or recovery=lora for memory"
            )
        if self.sharded and processes() == 1:
            raise ValueError(
                f"{group}.training.arguments.fsdp: one process has nothing to share; expected torchrun or "
                "accelerate launch with several, or no fsdp"
            )
        if self.sharded and device.type == "cpu":
            raise ValueError(
                f"{group}.training.arguments.fsdp: accelerate shards over GPUs and trains whole copies on a "
                "CPU; expected device=cuda, or no fsdp"
            )

    def steps(self, examples: int) -> int:
        """Return the number of optimizer steps of a training on so many examples, in one process."""
        batches = math.ceil(examples / self.batch_size)
        each = max(math.ceil(batches / self.accumulation), 1)
        return self.max_steps or math.ceil(self.epochs * each)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a shard of every weight while it trains."""
        return bool(self.arguments.get("fsdp")) or asked_for("ACCELERATE_USE_FSDP")

    def for_trainer(
        self, folder: Path, device: torch.device, seed: int, held_out: bool, best: bool = True
    ) -> TrainingArguments:
        """Return transformers' TrainingArguments. Raises ValueError for an option that they do not have.

        best: whether the result is the checkpoint with the best held-out loss, or the last one.
        """
        options = {"eval_steps": self.evaluate_every, "save_steps": self.evaluate_every, **self.arguments}
        options |= {"gradient_checkpointing": True} if self.checkpointing else {}
        try:
            arguments = OneDevice(
                output_dir=str(folder),
                num_train_epochs=self.epochs,
                max_steps=self.max_steps or -1,
                learning_rate=self.learning_rate,
                per_device_train_batch_size=self.batch_size,
                per_device_eval_batch_size=self.batch_size,
                gradient_accumulation_steps=self.accumulation,
                warmup_steps=self.warmup,
                lr_scheduler_type=self.scheduler,
                weight_decay=self.weight_decay,
                bf16=self.precision == "bf16",
                fp16=self.precision == "fp16",
                eval_strategy="steps" if held_out else "no",
                load_best_model_at_end=held_out and best,
                metric_for_best_model="eval_loss" if held_out and best else None,
                greater_is_better=False if held_out and best else None,
                logging_steps=max(1, self.evaluate_every // 10),
                seed=seed,
                data_seed=seed,
                use_cpu=device.type == "cpu",
                dataloader_pin_memory=device.type != "cpu",
                **ALWAYS,
                **options,
            )
        except TypeError as error:
            raise ValueError(f"training.arguments: {error}") from error
        if self.sharded:
            check_fsdp_version(arguments)
        return arguments


def check_fsdp_version(arguments: TrainingArguments) -> None:
    """Raise ValueError if weights would be sharded in the old way, from which no whole model is made here."""
    version = (arguments.fsdp_plugin_args or {}).get("fsdp_version", os.environ.get("FSDP_VERSION", "1"))
    if str(version) != "2":
        raise ValueError(
            f"FSDP of version {version}: expected training.arguments.fsdp_config.version=2, or "
            "fsdp_version: 2 in the file for accelerate launch"
        )


def asked_for(variable: str) -> bool:
    """Return whether `accelerate launch` set this variable to true."""
    return os.environ.get(variable, "").lower() == "true"

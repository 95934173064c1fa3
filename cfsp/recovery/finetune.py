"""Fine-tuning on Hugging Face's Trainer: any parameters for any objective on any examples."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from cfsp.checks import check_choice, check_integer, check_number, check_seed
from cfsp.examples import Examples, Split
from cfsp.layouts import check_positions, is_causal
from cfsp.options import Checked
from cfsp.process import environment_kept
from cfsp.record import peak_bytes, reset_peak
from cfsp.recovery.base import Objective, Parameters, Recovered, Recovery, Setting
from cfsp.sharding import gathered, outline
from cfsp.texts import Text
from cfsp.trainer import LossTrainer, outcome


@dataclass(frozen=True, kw_only=True)
class Training(Checked):
    """How long, how fast, in what steps.

    batch_size: examples on one device at a time; `accumulation` of them make an optimizer step.
    max_steps: optimizer steps; null goes by epochs. warmup: steps of linearly rising learning rate.
    evaluate_every: steps between looks at the held-out part, and between checkpoints.
    patience: looks without a better held-out loss before it stops; null never stops early. The best
        model seen is the one that counts, if anything is held out.
    precision: null is the model's own; "bf16" or "fp16" multiply in that and keep weights as they are.
    checkpointing: less memory for activations, and a second forward pass.
    arguments: anything else that transformers' TrainingArguments takes, but for deepspeed. With `fsdp`,
        or under `accelerate launch` with an FSDP config, each process trains a piece of every weight
        and gets the whole model back when training is over.
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

    def check(self, device: torch.device) -> None:
        """Raise ValueError if this device cannot train so, or the trained model would stay in pieces."""
        if self.precision == "fp16" and device.type == "cpu":
            raise ValueError(
                "recovery.training.precision=fp16: a CPU trains in float32 or bfloat16; expected bf16 or null"
            )
        if self.arguments.get("deepspeed") or asked_for("ACCELERATE_USE_DEEPSPEED"):
            raise ValueError(
                "recovery.training.arguments.deepspeed: its pieces cannot be put together here to measure "
                "and save the model; expected fsdp, checkpointing=true or recovery=lora for memory"
            )
        if self.sharded and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise ValueError(
                "recovery.training.arguments.fsdp: one process has nothing to share; expected torchrun or "
                "accelerate launch with several, or no fsdp"
            )
        if self.sharded and device.type == "cpu":
            raise ValueError(
                "recovery.training.arguments.fsdp: accelerate shards over GPUs and trains whole copies on a "
                "CPU; expected device=cuda, or no fsdp"
            )

    @property
    def sharded(self) -> bool:
        """Whether each process keeps a piece of every weight while it trains."""
        return bool(self.arguments.get("fsdp")) or asked_for("ACCELERATE_USE_FSDP")

    def for_trainer(self, folder: Path, device: torch.device, seed: int, held_out: bool) -> TrainingArguments:
        """As transformers wants it. Raises ValueError for what it does not accept."""
        options = {"eval_steps": self.evaluate_every, "save_steps": self.evaluate_every, **self.arguments}
        if self.checkpointing:
            options["gradient_checkpointing"] = True
        try:
            arguments = TrainingArguments(
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
                load_best_model_at_end=held_out,
                metric_for_best_model="eval_loss" if held_out else None,
                greater_is_better=False if held_out else None,
                prediction_loss_only=True,
                save_total_limit=2,
                restore_callback_states_from_checkpoint=True,
                logging_strategy="steps",
                logging_steps=max(1, self.evaluate_every // 10),
                logging_first_step=True,
                logging_nan_inf_filter=False,
                include_num_input_tokens_seen="non_padding",
                remove_unused_columns=False,
                label_names=["labels"],
                seed=seed,
                data_seed=seed,
                use_cpu=device.type == "cpu",
                dataloader_pin_memory=device.type != "cpu",
                disable_tqdm=True,  # `cfsp.bars` shows the steps
                report_to="none",
                **options,
            )
        except TypeError as error:
            raise ValueError(f"recovery.training.arguments: {error}") from error
        version = (arguments.fsdp_plugin_args or {}).get("fsdp_version", os.environ.get("FSDP_VERSION", "1"))
        if self.sharded and str(version) != "2":
            raise ValueError(
                f"FSDP of version {version}: expected recovery.training.arguments.fsdp_config.version=2, or "
                "fsdp_version: 2 in the file for accelerate launch"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            arguments._n_gpu = min(arguments.n_gpu, 1)  # several visible GPUs are no wish for DataParallel
        return arguments


@dataclass(frozen=True, kw_only=True)
class Finetune(Recovery):
    """Train `parameters` for an `objective` on `data`.

    A run that was killed goes on from its last checkpoint, in setting.folder.
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
        """Train from the last whole checkpoint in setting.folder, or from the start.

        Raises:
            ValueError: the loss or a gradient is NaN or infinite; the last good checkpoint stays.
        """
        self.objective.check(setting.change)
        device = setting.model.device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        reset_peak(str(device))
        set_seed(self.seed)  # whatever was drawn before: adapters and batches depend on the seed alone
        held_out = examples.held_out
        arguments = self.training.for_trainer(setting.folder, device, self.seed, bool(held_out))
        grads = [weight.requires_grad for weight in setting.model.parameters()]
        use_cache = (
            setting.model.config.use_cache
        )  # the Trainer turns it off, and a saved config would say so
        module, notes = self.parameters.attach(setting.model, setting.change)
        shape = outline(module) if self.training.sharded else None
        dense = None if setting.dense is None else setting.dense.to(arguments.device)

        def loss(
            model: nn.Module, inputs: Mapping[str, Tensor], labels_in_step: Tensor | int | None
        ) -> Tensor:
            return self.objective.loss(model, inputs, dense, setting.change, labels_in_step)

        with environment_kept():  # accelerate leaves its choices there, for the next one to find
            trainer = LossTrainer(
                loss=loss,
                follow=setting.follow,
                model=module,
                args=arguments,
                train_dataset=examples.train,
                eval_dataset=held_out or None,
                data_collator=self.data.collator(setting.tokenizer),
            )
            if held_out and self.training.patience is not None:
                trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=self.training.patience))
            trainable = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
            trainer.go_on()
        if shape is not None:
            trainer.accelerator.free_memory()  # the optimizer's, for the whole model
            module = gathered(trainer.model, shape)
        model, adapters = self.parameters.detach(module)
        model.config.use_cache = use_cache
        for weight, needed in zip(model.parameters(), grads, strict=False):
            weight.requires_grad_(needed)
        training = {
            "trainable": trainable,
            "adapters": 0 if adapters is None else trainable,
            "examples": len(examples.train),
            "held_out": len(held_out),
            "data": self.data.labels,
            "lost": examples.lost,
            **outcome(trainer, arguments),
            "peak_bytes": peak_bytes(device),
            **notes,
        }
        return Recovered(model.eval(), training, adapters)


def asked_for(variable: str) -> bool:
    """Whether `accelerate launch` set this."""
    return os.environ.get(variable, "").lower() == "true"

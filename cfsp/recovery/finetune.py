"""Fine-tuning on Hugging Face's Trainer: any parameters for any objective on any examples."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from cfsp.checks import check_bool, check_choice, check_integer, check_number
from cfsp.examples import Example, Examples, Prose
from cfsp.layouts import check_positions, is_causal
from cfsp.record import peak_bytes, reset_peak
from cfsp.recovery.base import Change, Objective, Parameters, Recovered, Recovery, Setting
from cfsp.texts import Text

Split = tuple[list[Example], list[Example]]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, how fast, in what steps.

    batch_size: examples on one device at a time; `accumulation` of them make an optimizer step.
    max_steps: optimizer steps; null goes by epochs. warmup: steps of linearly rising learning rate.
    evaluate_every: steps between looks at the held-out part, and between checkpoints.
    patience: looks without a better held-out loss before it stops; null never stops early. The best
        model seen is the one that counts, if anything is held out.
    precision: null is the model's own; "bf16" or "fp16" multiply in that and keep weights as they are.
    checkpointing: less memory for activations, and a second forward pass.
    arguments: anything else that transformers' TrainingArguments takes, for example fsdp.
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
        check_choice("precision", self.precision, (None, "bf16", "fp16"))
        check_bool("checkpointing", self.checkpointing)

    def for_trainer(self, folder: Path, device: torch.device, seed: int, held_out: bool) -> TrainingArguments:
        """As transformers wants it. Raises ValueError for what it does not accept."""
        options = {"eval_steps": self.evaluate_every, "save_steps": self.evaluate_every, **self.arguments}
        if self.checkpointing:
            options["gradient_checkpointing"] = True
        bar = os.isatty(2)
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
                disable_tqdm=not bar,
                report_to="none",
                **options,
            )
        except TypeError as error:
            raise ValueError(f"recovery.training.arguments: {error}") from error
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

    @property
    def needs_dense(self) -> bool:
        return self.objective.needs_dense

    def reads(self) -> list[Text]:
        return [one.text for one in self.data.sources.values() if isinstance(one, Prose)]

    def prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, statistics: Collection[str]
    ) -> Split:
        if not is_causal(model):
            raise ValueError(f"recovery trains causal language models, not {type(model).__name__}")
        check_positions(model, self.data.window, "recovery.data.window")
        self.parameters.check(model)
        self.training.for_trainer(Path(), model.device, self.seed, held_out=True)
        if missing := self.parameters.needs - set(statistics):
            raise ValueError(
                f"recovery follows {', '.join(sorted(missing))}, which nothing here measures; expected "
                "allocator=cfsp or criterion=depth, or recovery.parameters.proportional_to=removed"
            )
        train, held_out = self.data.split(tokenizer)
        step = self.training.batch_size * self.training.accumulation
        if len(train) < step:
            raise ValueError(
                f"{len(train)} examples to train on are less than one step of "
                f"batch_size={self.training.batch_size} x accumulation={self.training.accumulation}; "
                "expected more data, or less of these"
            )
        return train, held_out

    def run(self, setting: Setting, examples: Split) -> Recovered:
        """Train from the last checkpoint in setting.folder, or from the start.

        Raises:
            ValueError: the loss or a gradient is NaN or infinite; the last good checkpoint stays.
        """
        train, held_out = examples
        self.objective.check(setting.change)
        device = setting.model.device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        reset_peak(str(device))
        set_seed(self.seed)  # whatever was drawn before: adapters and batches depend on the seed alone
        arguments = self.training.for_trainer(setting.folder, device, self.seed, bool(held_out))
        grads = [weight.requires_grad for weight in setting.model.parameters()]
        module, notes = self.parameters.attach(setting.model, setting.change)
        patience = self.training.patience if held_out else None
        trainer = ObjectiveTrainer(
            model=module,
            args=arguments,
            train_dataset=train,
            eval_dataset=held_out or None,
            data_collator=self.data.collator(setting.tokenizer),
            objective=self.objective,
            setting=setting,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Watch(setting.follow))
        if patience is not None:
            trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=patience))
        trainable = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
        start = get_last_checkpoint(setting.folder) if setting.folder.is_dir() else None
        trainer.train(resume_from_checkpoint=start)
        model, adapters = self.parameters.detach(module)
        for weight, needed in zip(model.parameters(), grads, strict=False):
            weight.requires_grad_(needed)
        training = {
            "trainable": trainable,
            "examples": len(train),
            "held_out": len(held_out),
            "data": self.data.labels,
            **outcome(trainer, arguments),
            "peak_bytes": peak_bytes(device),
            **notes,
        }
        return Recovered(model.eval(), training, adapters)


def outcome(trainer: Trainer, arguments: TrainingArguments) -> dict[str, Any]:
    """What training came to, from the trainer's own log."""
    state = trainer.state
    curve = [row for row in state.log_history if "loss" in row]
    looks = [row for row in state.log_history if "eval_loss" in row]
    planned = state.max_steps
    return {
        "steps": state.global_step,
        "stopped_early": state.global_step < planned,
        "best_step": state.best_global_step if looks else None,
        "epochs": round(state.epoch or 0.0, 4),
        "tokens": int(state.num_input_tokens_seen),
        "seconds": max((row["seconds"] for row in state.log_history if "seconds" in row), default=0.0),
        "batch": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        "curve": [
            {
                "step": row["step"],
                "loss": row["loss"],
                "learning_rate": row["learning_rate"],
                "tokens": row["num_input_tokens_seen"],
                "seconds": row["seconds"],
            }
            for row in curve
        ],
        "held_out_curve": [{"step": row["step"], "loss": row["eval_loss"]} for row in looks],
    }


class ObjectiveTrainer(Trainer):
    """A Trainer whose loss is an objective's, and that stops where the loss is no number."""

    def __init__(self, *, objective: Objective, setting: Setting, **options: Any) -> None:
        super().__init__(**options)
        self.objective = objective
        self.change: Change = setting.change
        self.dense = setting.dense
        self.model_accepts_loss_kwargs = True  # our losses are divided by the labels of the whole step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        loss = self.objective.loss(model, inputs, self.dense, self.change, num_items_in_batch)
        if not torch.isfinite(loss):
            raise ValueError(not_finite("the loss", self.state.global_step + 1, self.args.output_dir))
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, {"loss": loss}) if return_outputs else loss


class Watch(TrainerCallback):
    """Refuses gradients that are no numbers, before they reach the weights; keeps the time; tells."""

    def __init__(self, follow: Callable[[Mapping[str, float], int], None]) -> None:
        self.follow = follow

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        spent = max((row["seconds"] for row in state.log_history if "seconds" in row), default=0.0)
        self.start = time.perf_counter() - spent

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        row = state.log_history[-1]
        row["seconds"] = round(time.perf_counter() - self.start, 3)
        told = {name: row[name] for name in ("loss", "eval_loss", "learning_rate") if name in row}
        if told and state.is_world_process_zero:
            self.follow(told, state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        grads = [weight.grad for weight in others["model"].parameters() if weight.grad is not None]
        if not torch.stack([grad.norm() for grad in grads]).isfinite().all():
            raise ValueError(not_finite("a gradient", state.global_step + 1, args.output_dir))


def not_finite(what: str, step: int, folder: str) -> str:
    last = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    kept = f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
    return (
        f"recovery step {step}: {what} is NaN or infinite; {kept}. Expected a lower "
        "recovery.training.learning_rate, or model.dtype=float32"
    )

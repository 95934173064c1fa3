"""Hugging Face's Trainer with a custom loss; it stops on NaN or infinity, and resumes if killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from cfsp.bars import Work
from cfsp.plans.subject import Follow
from cfsp.storage.atomic import writing
from cfsp.training.early_stopping import curve_row, held_out_curve
from cfsp.training.pruner import Pruning
from cfsp.training.resume import drop_torn, has_ended, mark_whole, newest_whole

Loss = Callable[[nn.Module, Mapping[str, Tensor], Tensor | int | None], Tensor]
"""The loss of a model on a batch, given the number of labels in all batches of the step."""

PRUNING = "pruning.safetensors"
"""Name of the file with a pruner's scores in a checkpoint."""

SKIPS = 20
"""Steps in a row that a scaler may skip: each halves its scale, from 2^16 down to 1/16."""


OF_SCORES = "of_scores"
"""Marks the groups of a pruner's scores in the optimizer."""


class LossTrainer(Trainer):
    """A Trainer whose loss is a function; it stops if the loss or a gradient is NaN or infinite.

    pruning: scores that are trained beside the weights, with their own learning rate and a penalty in the
        loss. stage: the name of the training on the screen and in messages. order: yields the indices of
        the examples; None: a random order.
    """

    def __init__(
        self,
        *,
        loss: Loss,
        follow: Follow,
        pruning: Pruning | None = None,
        stage: str = "recovery",
        order: Sampler[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.loss, self.pruning, self.stage, self.order = loss, pruning, stage, order
        self.model_accepts_loss_kwargs = True  # our losses are divided by the labels of the whole step
        self.remove_callback(PrinterCallback)
        self.watch = Watch(follow, pruning, stage, scaled=self.args.fp16)
        self.add_callback(self.watch)

    @property
    def folder(self) -> Path:
        """Where its checkpoints go."""
        assert self.args.output_dir is not None, "`Training.for_trainer` names it"
        return Path(self.args.output_dir)

    def go_on(self) -> None:
        """Train from the last valid checkpoint, or from the start; if training had ended, load its result."""
        folder = self.folder
        drop_torn(folder)
        PartialState().wait_for_everyone()
        last = newest_whole(folder)
        if last is not None and self.pruning is not None:
            self.pruning.restore(load_file(last / PRUNING))
        if last is None or not has_ended(last):
            try:
                self.train(resume_from_checkpoint=None if last is None else str(last))
            finally:
                self.watch.end()
            return
        self.state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
        if self.pruning is not None:
            self.pruning.begin(self.state.max_steps)
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        # No public method loads a checkpoint without training on; this knows adapters and sharded weights.
        self._load_from_checkpoint(str(folder / Path(best).name if best else last))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        # The public method makes the whole loader, for several processes too; only the order differs here.
        return self.order if self.order is not None else super()._get_train_sampler(train_dataset)

    def create_optimizer(self, *args: Any, **options: Any) -> Any:
        """Make the optimizer. The pruner's scores are in groups of their own, not in those of the weights."""
        optimizer = super().create_optimizer(*args, **options)
        if self.pruning is not None:
            self.pruning.steer(optimizer)
        groups = self.pruning.groups() if self.pruning is not None else []
        scores = {id(one) for group in groups for one in group["params"]}
        for group in optimizer.param_groups if scores else ():
            group["params"] = [one for one in group["params"] if id(one) not in scores]
        for group in groups:
            optimizer.add_param_group({**group, "lr": 0.0, OF_SCORES: True})
        return optimizer

    def create_scheduler(self, num_training_steps: int, *args: Any, **options: Any) -> Any:
        """Make the scheduler. The learning rate of scores depends on the number of steps, known only now."""
        if self.pruning is not None:
            self.pruning.begin(num_training_steps)
        for group in getattr(self.optimizer, "param_groups", []):
            if self.pruning is not None and group.get(OF_SCORES):
                group["lr"] = self.pruning.rate(num_training_steps)
        return super().create_scheduler(num_training_steps, *args, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Nothing is written here for sharded weights. Each process then looks for the folder of the best
        # checkpoint, which the first process may not have made yet.
        (Path(output_dir) if output_dir else self.folder).mkdir(parents=True, exist_ok=True)
        super().save_model(output_dir, _internal_call)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # Tied weights are saved under one name. transformers warns that the other names are missing.
        tied = getattr(self.model, "all_tied_weights_keys", {})
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        with writing(self.folder / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(*args, **options)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        loss = self.loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        if self.pruning is not None and model.training:  # every process has the whole penalty
            # Without a number of labels the Trainer divides the sum by the batches of the step itself.
            batches = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.pruning.penalty() / batches
        if not torch.isfinite(loss):
            raise ValueError(not_finite("the loss", self.state.global_step + 1, self.folder, self.stage))
        return (loss, {"loss": loss}) if return_outputs else loss


class Watch(TrainerCallback):
    """Raises on NaN or infinite gradients before they reach the weights; logs progress and time.

    scaled: losses are scaled for float16. A scaler finds its scale by skipping steps whose gradients
        overflow, so only many such steps in a row raise.
    """

    def __init__(
        self,
        follow: Follow,
        pruning: Pruning | None = None,
        stage: str = "recovery",
        scaled: bool = False,
    ) -> None:
        self.follow, self.pruning, self.stage = follow, pruning, stage
        self.allowed = SKIPS if scaled else 0
        self.skipped = 0
        self.shown: Work | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        spent = max((row["seconds"] for row in state.log_history if "seconds" in row), default=0.0)
        self.start = time.perf_counter() - spent
        self.shown = Work(self.stage, "step", state.max_steps)
        self.shown.advance(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.pruning is not None:
            self.pruning.begin_step(state.global_step / state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.shown is not None:
            self.shown.advance()
        if self.pruning is not None:
            self.pruning.after_step(state.global_step)

    def end(self) -> None:
        """Remove the progress bar, however training ended."""
        if self.shown is not None:
            self.shown.end()

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        row = state.log_history[-1]
        row["seconds"] = round(time.perf_counter() - self.start, 3)
        if self.pruning is not None:
            row["removed"] = self.pruning.removed()
        told = {name: row[name] for name in ("loss", "eval_loss", "learning_rate", "removed") if name in row}
        if told and state.is_world_process_zero:
            self.follow(told, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        PartialState().wait_for_everyone()  # each process writes its own random state
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if self.pruning is not None:
                save_file(
                    {name: one.contiguous() for name, one in self.pruning.state().items()}, folder / PRUNING
                )
            mark_whole(folder, ended=control.should_training_stop)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        grads = [weight.grad for weight in others["model"].parameters() if weight.grad is not None]
        total = nn.utils.get_total_norm(grads)
        if (total.full_tensor() if isinstance(total, DTensor) else total).isfinite():
            self.skipped = 0
        elif self.skipped < self.allowed:
            self.skipped += 1
        else:
            step, folder = state.global_step + 1, Path(args.output_dir)
            raise ValueError(not_finite("a gradient", step, folder, self.stage))


def not_finite(what: str, step: int, folder: Path, stage: str = "recovery") -> str:
    last = newest_whole(folder)
    kept = f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
    return (
        f"{stage} step {step}: {what} is NaN or infinite; {kept}. Expected a lower "
        f"{stage}.training.learning_rate, or model.dtype=float32"
    )


def outcome(trainer: Trainer, arguments: TrainingArguments) -> dict[str, Any]:
    """Return a summary of training, from the trainer's own log."""
    state = trainer.state
    looks = held_out_curve(state.log_history).rows
    return {
        "steps": state.global_step,
        "stopped_early": state.global_step < state.max_steps,
        "best_step": state.best_global_step if looks else None,
        "epochs": round(state.epoch or 0.0, 4),
        "tokens": int(state.num_input_tokens_seen),
        "seconds": max((row["seconds"] for row in state.log_history if "seconds" in row), default=0.0),
        "batch": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
        "curve": [
            curve_row(
                int(row["step"]),
                row["loss"],
                row["learning_rate"],
                row["seconds"],
                int(row["num_input_tokens_seen"]),
            )
            | ({"removed": row["removed"]} if "removed" in row else {})
            for row in state.log_history
            if "loss" in row
        ],
        "held_out_curve": looks,
    }

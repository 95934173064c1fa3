"""Early stopping: the rows of a training curve, and when to stop by the held-out loss."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

Row = dict[str, Any]


def curve_row(step: int, loss: float, learning_rate: float, seconds: float, tokens: int | None = None) -> Row:
    """Return one row of a training curve. tokens: seen so far; None if they are not counted."""
    seen = {} if tokens is None else {"tokens": tokens}
    return {"step": step, "loss": loss, "learning_rate": learning_rate, **seen, "seconds": seconds}


class HeldOutCurve:
    """The evaluations on the held-out part so far, the best one, and whether to stop.

    patience: evaluations in a row without a better one before training stops; None: it never stops.
    """

    def __init__(self, patience: int | None = None) -> None:
        self.patience = patience
        self.rows: list[Row] = []
        self.best: Row | None = None
        self.since_best = 0

    def add(self, step: int, loss: float) -> bool:
        """Add one evaluation. Return whether it is the best so far."""
        self.rows.append({"step": step, "loss": loss})
        better = self.best is None or loss < self.best["loss"]
        self.best = self.rows[-1] if better else self.best
        self.since_best = 0 if better else self.since_best + 1
        return better

    @property
    def should_stop(self) -> bool:
        return self.patience is not None and self.since_best >= self.patience


def held_out_curve(log: list[Row], patience: int | None = None) -> HeldOutCurve:
    """Return the evaluations in the log of transformers' Trainer."""
    curve = HeldOutCurve(patience)
    for row in log:
        if "eval_loss" in row:
            curve.add(row["step"], row["eval_loss"])
    return curve


class StopEarly(TrainerCallback):
    """Stops transformers' Trainer by its log only, so a resumed training stops at the same step."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if held_out_curve(state.log_history, self.patience).should_stop:
            control.should_training_stop = True

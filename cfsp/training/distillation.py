"""The objective of distillation: imitate the dense model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from cfsp.checks import check_number
from cfsp.data.tasks.base import Task
from cfsp.data.tasks.language_modelling import LanguageModelling
from cfsp.model.model_inputs import inputs_of
from cfsp.training.base import Change, Objective

COLDEST, HOTTEST = math.sqrt(torch.finfo().tiny), math.sqrt(torch.finfo().max)
"""Lowest and highest temperature with T² and 1 / T² in float32, the loss's dtype; beyond, it is NaN."""


@dataclass(frozen=True, kw_only=True)
class Distillation(Objective):
    """label_weight CE + logit_weight T² KL(dense || pruned) + hidden_weight E, means over labels.

    CE is the cross-entropy of the labels; the KL divergence is of the next-token distributions, or of a
    task's distributions over its labels or places, at temperature T (Hinton et al., arXiv 1503.02531); E is
    the mean over the remaining blocks of |h_pruned - h_dense|² / |h_dense|², with h the hidden states after
    the block. For the last block these are the final hidden states of both models, after the norm. The
    error is relative for each token, so that no term depends on how a step is split into batches. If a
    label belongs to a whole text, E is the mean over the tokens of the text.

    teacher: a folder or a hub id of a model with the same vocabulary and head, to imitate instead of the
        dense model; it is frozen and in eval mode.
    """

    label_weight: float
    logit_weight: float
    hidden_weight: float
    temperature: float
    teacher: str | None = None
    task: Task = field(default_factory=LanguageModelling)

    @property
    def needs_dense(self) -> bool:
        return self.teacher is None

    @property
    def reads_hidden_states(self) -> bool:
        return self.hidden_weight > 0

    def of(self, task: Task) -> Distillation:
        if self.logit_weight and task.choices is not None and len(task.choices) < 2:
            raise ValueError(
                "a task whose label is a number has no distribution to distil; expected logit_weight=0 and "
                "hidden_weight above 0, or objective=next_token"
            )
        if self.hidden_weight and not task.one_stack:
            raise ValueError(
                "hidden_weight compares one stack of blocks, and the task's models have two; expected "
                "hidden_weight=0"
            )
        return replace(self, task=task)

    def __post_init__(self) -> None:
        for name in ("label_weight", "logit_weight", "hidden_weight"):
            check_number(name, getattr(self, name), least=0)
        if not self.logit_weight + self.hidden_weight:
            raise ValueError("logit_weight and hidden_weight are 0: nothing to distil; expected one above 0")
        check_number("temperature", self.temperature, least=COLDEST, most=HOTTEST)

    def check(self, change: Change) -> None:
        if self.hidden_weight and change.residual_cut:
            raise ValueError(
                "hidden states of the dense model are wider: channels of the residual stream were cut; "
                "expected hidden_weight=0, or sites without hidden"
            )

    def loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        dense: PreTrainedModel | None,
        change: Change,
        labels_in_step: Tensor | int | None,
    ) -> Tensor:
        if dense is None:
            raise ValueError("distillation learns from the dense model; expected it beside the pruned one")
        tokens, hidden = inputs_of(model, inputs), self.hidden_weight > 0
        with torch.no_grad():
            teacher = dense(**tokens, output_hidden_states=hidden, **self.task.options)
        student = model(**tokens, output_hidden_states=hidden, **self.task.options)
        (ours, labels), (theirs, _) = (self.task.decisions(one, inputs) for one in (student, teacher))
        ours, theirs = ours.float(), theirs.float()
        number = len(labels) if labels_in_step is None else labels_in_step
        loss = self.label_weight * self.task.cost(ours, labels)
        if self.logit_weight:
            soft, goal = (F.log_softmax(logits / self.temperature, dim=-1) for logits in (ours, theirs))
            divergence = F.kl_div(soft, goal, reduction="sum", log_target=True)
            loss = loss + self.logit_weight * self.temperature**2 * divergence
        if hidden:
            inner = [teacher.hidden_states[block + 1] for block in change.blocks[:-1]]
            goals = [*inner, teacher.hidden_states[-1]]
            weights = self.task.weights(inputs)
            errors = [
                relative_error(state, goal, weights)
                for state, goal in zip(student.hidden_states[1:], goals, strict=True)
            ]
            loss = loss + self.hidden_weight * torch.stack(errors).mean()
        return loss / number


def relative_error(ours: Tensor, theirs: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum over tokens of |ours - theirs|^2 / |theirs|^2. []

    ours, theirs: [batch, tokens, hidden]; weights: [batch, tokens], 0 for tokens that do not count.
    """
    counts = weights > 0
    ours, theirs = ours[counts].float(), theirs[counts].float()
    errors, goals = (ours - theirs).square().sum(1), theirs.square().sum(1)  # [counted]
    return (errors / goals.clamp_min(1e-12) * weights[counts]).sum()

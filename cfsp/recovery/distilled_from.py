"""The teacher of a distillation, if it is another model than the dense one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checkpoints.load import HEADS, load
from cfsp.checkpoints.saved_classes import auto_class
from cfsp.model.blocks import block_modules
from cfsp.storage.fingerprints import fingerprint
from cfsp.training.base import Objective, Setting


def load_teacher(
    objective: Objective, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel | None:
    """Load the objective's teacher, in eval mode and frozen; None if it names none.

    Raises:
        ValueError: it cannot be loaded, or its vocabulary, its head or, for hidden states, its shape differ.
    """
    if objective.teacher is None:
        return None
    head, start = head_of(model), f"objective.teacher={objective.teacher!r}"
    try:
        teacher, words = load(
            objective.teacher,
            head=head,
            head_trained=False,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
        )
    except ValueError as error:
        raise ValueError(f"{start}, with the head {head} as the model's: {error}") from error
    if words.get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"{start} has another vocabulary than the model; expected the same tokenizer")
    ours, theirs = labels_of_head(model, head), labels_of_head(teacher, head)
    unnamed = any(one.startswith("label_") for one in (ours[0], theirs[0]))
    if len(ours) != len(theirs) or (ours != theirs and not unnamed):
        raise ValueError(
            f"{start} chooses between {', '.join(theirs)}; expected a head as the model's, {', '.join(ours)}"
        )
    if objective.reads_hidden_states and shape_of(teacher) != shape_of(model):
        raise ValueError(
            f"{start} has (blocks, width) {shape_of(teacher)}, whose hidden states are no goal for "
            f"{shape_of(model)}; expected hidden_weight=0, or a teacher of the same shape"
        )
    return teacher.requires_grad_(False)


def head_of(model: PreTrainedModel) -> str:
    """Return the head of a model, as in model.head."""
    auto = auto_class(type(model).__name__)
    return next(head for head, kind in HEADS.items() if kind.__name__ == auto)


def labels_of_head(model: PreTrainedModel, head: str) -> list[str]:
    """Return what a model's head chooses between: the names of labels, or one name for all."""
    if head == "question_answering":
        return ["places"]
    if head != "sequence_classification":
        return [f"{model.config.vocab_size} tokens"]
    return [str(name).casefold() for _, name in sorted((model.config.id2label or {}).items())]


def shape_of(model: PreTrainedModel) -> tuple[int, int]:
    """Return the number of blocks and the residual width."""
    return len(block_modules(model)), model.config.hidden_size


def with_teacher(setting: Setting, objective: Objective) -> tuple[Setting, dict[str, Any]]:
    """Put the objective's teacher, if it names one, in the place of the dense model.

    Returns the setting and notes for the record: where the teacher is and a hash of its weights. Raises
    ValueError as `load_teacher` does.
    """
    teacher = load_teacher(objective, setting.dense or setting.model, setting.tokenizer)
    if teacher is None:
        return setting, {}
    notes = {"teacher": {"path": objective.teacher, "fingerprint": fingerprint(teacher)}}
    return replace(setting, dense=teacher), notes

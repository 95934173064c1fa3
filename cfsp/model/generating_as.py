"""Generation configs: what `generate` takes from the model where an argument leaves it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig, PreTrainedModel


@contextmanager
def generating_as(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Replace a model's generation config inside the block; a model that has none keeps none."""
    given = getattr(model, "generation_config", None)
    if given is not None:
        model.generation_config = config
    try:
        yield
    finally:
        if given is not None:
            model.generation_config = given

"""Blocks: where a model keeps them, which kinds of sites they have, and what input the model takes."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel

from cfsp.model.families import LAYOUTS, Layout, Place
from cfsp.model.unsupported import why_unsupported


def places_of(model: PreTrainedModel) -> dict[str, Place]:
    """Return the kinds of sites in a block of this model, by its family and its config."""
    return {
        kind: place
        for kind, place in layout_of(model).places.items()
        if not (place.unless and getattr(model.config, place.unless, False))
    }


def count_paths(place: Place) -> dict[tuple[str, str], str]:
    """Return (module, attribute) -> what it counts. "self_attn.config.x" is x of the module's config."""
    paths = {}
    for path, what in place.counts.items():
        module, _, attribute = path.replace(".config.", ".config:").rpartition(".")
        paths[module, attribute.replace(":", ".")] = what
    return paths


def layout_of(model: PreTrainedModel) -> Layout:
    """Return the layout of the model's family. Raises ValueError, with the known families, if it has none."""
    model_type = model.config.model_type
    if model_type not in LAYOUTS:
        check_family(model.config)
        raise ValueError(
            f"model_type {model_type!r} has no layout; known: {', '.join(sorted(LAYOUTS))}. "
            f"To add it, give cfsp.model.families.LAYOUTS[{model_type!r}] a Layout "
            "(docs/extend/family.md), in a module that plugins=[...] names"
        )
    return LAYOUTS[model_type]


def check_family(config: PreTrainedConfig) -> None:
    """Raise ValueError if a layout would not be enough to prune a model of this config."""
    if config.model_type not in LAYOUTS and (why := why_unsupported(config)):
        raise ValueError(f"model_type {config.model_type!r} is not supported: {why}")


def block_modules(model: PreTrainedModel) -> list[str]:
    """Return the paths of the model's blocks, in order."""
    path = layout_of(model).blocks
    if model.base_model is not model:
        path = f"{model.base_model_prefix}.{path}"
    return [f"{path}.{index}" for index in range(len([*model.get_submodule(path).children()]))]


def max_positions(model: PreTrainedModel) -> int | None:
    """Return the longest input that the model takes, in tokens; None if it has no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return None if positions is None else positions - layout_of(model).reserved_positions


def is_causal(model: PreTrainedModel) -> bool:
    """Return whether a token sees only earlier tokens and the model's head predicts the next one."""
    causal = layout_of(model).causal or getattr(model.config, "is_decoder", False)
    return causal and model.can_generate()


def check_positions(model: PreTrainedModel, tokens: int, what: str) -> None:
    """Raise ValueError if an input of `tokens` tokens exceeds the model's positions."""
    limit = max_positions(model)
    if limit is not None and tokens > limit:
        raise ValueError(f"{what}={tokens}: the model has {limit} positions; expected at most {limit}")

"""Blocks: where a model keeps them, which kinds of sites they have, and what input the model takes."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel

from cfsp.model.families import LAYOUTS, Layout, Place
from cfsp.model.unsupported import why_unsupported

WHOLE = ("ForConditionalGeneration", "Model")
"""Endings of the classes that have both stacks of an encoder-decoder."""


def places_of(model: PreTrainedModel, block: str) -> dict[str, Place]:
    """Return the kinds of sites in a block, by the model's family and its config. block: its path."""
    return {
        kind: place
        for kind, place in stack_of(model, block).places.items()
        if not (place.unless and getattr(model.config, place.unless, False))
    }


def place_kinds(model: PreTrainedModel) -> list[str]:
    """Return the kinds of sites that any block of this model has."""
    firsts = [f"{blocks_path(model, stack)}.0" for stack in stacks_of(model)]
    return [*dict.fromkeys(kind for path in firsts for kind in places_of(model, path))]


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
    layout = LAYOUTS[model_type]
    if layout.decoder and not type(model).__name__.endswith(WHOLE):
        raise ValueError(
            f"a {type(model).__name__} is not pruned here: of a {model_type} expected the encoder-decoder "
            "itself, with model.head=sequence_to_sequence"
        )
    chosen = (other for flag, other in layout.variants.items() if getattr(model.config, flag, False))
    return next(chosen, layout)


def stacks_of(model: PreTrainedModel) -> list[Layout]:
    """Return the layout of every stack of blocks: one, or the encoder's and the decoder's."""
    layout = layout_of(model)
    return [layout] if layout.decoder is None else [layout, layout.decoder]


def stack_of(model: PreTrainedModel, block: str) -> Layout:
    """Return the layout of the stack that a block is in. block: its path."""
    parent = block.rpartition(".")[0]
    return next(stack for stack in stacks_of(model) if blocks_path(model, stack) == parent)


def is_in_decoder(model: PreTrainedModel, path: str) -> bool:
    """Return whether a module is in the decoder of an encoder-decoder, which reads other tokens."""
    return any(path.startswith(f"{blocks_path(model, stack)}.") for stack in stacks_of(model)[1:])


def check_one_stack(model: PreTrainedModel, what: str) -> None:
    """Raise ValueError if the model is an encoder-decoder. what: a part that goes from block to block."""
    if len(stacks_of(model)) > 1:
        raise ValueError(
            f"{what} goes through one stack of blocks, and a {model.config.model_type} has two; expected "
            "schedule=one_shot, iterative, movement or lorashear, an allocator without probes and no "
            "protect=knowledge"
        )


def check_family(config: PreTrainedConfig) -> None:
    """Raise ValueError if a layout would not be enough to prune a model of this config."""
    if config.model_type not in LAYOUTS and (why := why_unsupported(config)):
        raise ValueError(f"model_type {config.model_type!r} is not supported: {why}")


def blocks_path(model: PreTrainedModel, stack: Layout) -> str:
    """Return the path of a stack's list of blocks."""
    return stack.blocks if model.base_model is model else f"{model.base_model_prefix}.{stack.blocks}"


def block_modules(model: PreTrainedModel) -> list[str]:
    """Return the paths of the model's blocks, in order; an encoder's before its decoder's."""
    return [
        f"{path}.{index}"
        for path in (blocks_path(model, stack) for stack in stacks_of(model))
        for index in range(len([*model.get_submodule(path).children()]))
    ]


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

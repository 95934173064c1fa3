"""Finding: the sites of a model, read off its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cfsp.model.blocks import block_modules, count_paths, layout_of, places_of
from cfsp.model.sites import Count, Member, Site
from cfsp.model.weights import bias_of, weight_of

HEAD_KINDS = ("attention", "query_heads")

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HOMES = (
    "torch.nn.modules.",
    "transformers.models.",
    "transformers.pytorch_utils",
    "cfsp.model.modeling_pruned",
)
"""Where the classes come from that a model is made of, besides the file that defines the model."""


def find_sites(model: PreTrainedModel, kinds: Sequence[str] = ("mlp",)) -> list[Site]:
    """List the sites of these kinds, block by block, then those that belong to no single block.

    Sizes are read off the weights, so a model that was cut before is described as it is now.

    Raises:
        ValueError: the model's type has no layout, a kind is not one that it has, or a layer is
            not of the class or the dtype that transformers gives it.
    """
    check_modules(model)
    known = site_kinds(model)
    if not isinstance(kinds, list | tuple) or not kinds or len(set(kinds)) != len(kinds):
        raise ValueError(f"sites={kinds!r}: expected a list of one or more of {known}")
    for kind in kinds:
        if kind not in known:
            raise ValueError(
                f"sites={[*kinds]}: this {model.config.model_type} has no {kind!r} whose units can go; "
                f"expected one or more of {known}"
            )
    sites = [
        make_site(model, kind, block, path)
        for block, path in enumerate(block_modules(model))
        for kind in kinds
        if kind in ("mlp", *HEAD_KINDS) and not is_skipped(model, kind, path)
    ]
    if "block" in kinds:
        sites.append(block_site(model))
    if "hidden" in kinds:
        sites.append(hidden_site(model))
    return sites


def check_modules(model: nn.Module) -> None:
    """Raise ValueError if a layer was wrapped, replaced or quantised: its weight is not all that it is."""
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"a {type(model).__name__} cannot be pruned; expected a model of transformers (adapters of peft: "
            "merge_and_unload() first)"
        )
    names = {module: name for name, module in model.named_modules()}
    linears = [model.get_submodule(name) for name in linear_paths(model)]
    for module in [model.get_input_embeddings(), *linears, model.get_output_embeddings()]:
        if module is None or is_plain(module, (*HOMES, type(model).__module__)):
            continue
        kind, weight = type(module), getattr(module, "weight", None)
        dtype = f" of {str(weight.dtype).removeprefix('torch.')}" if isinstance(weight, Tensor) else ""
        raise ValueError(
            f"{names[module]} is a {kind.__module__}.{kind.__qualname__}{dtype}; expected the family's own "
            "layer of floating-point weights (adapters: merge_and_unload() first; quantised: dequantize())"
        )


def linear_paths(model: PreTrainedModel) -> Iterator[str]:
    """Paths of the linear layers that lie at sites and have something left."""
    for path in block_modules(model):
        for kind, place in places_of(model).items():
            if not (kind == "attention" and is_skipped(model, kind, path)):
                yield from (f"{path}.{name}" for name in (*place.producers, place.consumer))


def is_plain(module: nn.Module, homes: tuple[str, ...]) -> bool:
    """Whether a layer computes with nothing but a weight in floats and a bias. homes: of its class."""
    if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
        return False
    known, weight = type(module).__module__.startswith(homes), module.weight
    return known and type(weight) is nn.Parameter and weight.dtype in FLOATS


def site_kinds(model: PreTrainedModel) -> list[str]:
    """The kinds of sites that this model has, by its family and its config.

    mlp: neurons. attention: heads, or key/value groups with theirs. query_heads: heads, as many of
    each group. block: whole blocks. hidden: channels of the residual stream.
    """
    layout, config = layout_of(model), model.config
    kinds = [*places_of(model)]
    shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if "attention" in kinds and shared < config.num_attention_heads:
        kinds.append("query_heads")
    if not getattr(config, "scale_attn_by_inverse_layer_idx", False):  # GPT-2: a block's number matters
        kinds.append("block")
    if layout.norms:
        kinds.append("hidden")
    return kinds


def head_channels(config: PreTrainedConfig) -> int:
    """Channels of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def is_skipped(model: PreTrainedModel, kind: str, path: str) -> bool:
    """Whether a block was cut before and has nothing of this kind left."""
    consumer = places_of(model)["mlp" if kind == "mlp" else "attention"].consumer
    return axis_length(model, f"{path}.{consumer}", output=False) == 0


def make_site(model: PreTrainedModel, kind: str, block: int, path: str) -> Site:
    """Read one site's members and unit count off the modules of one block."""
    place = places_of(model)["mlp" if kind == "mlp" else "attention"]
    spans, groups = {"n": 1}, 1
    counted = {"width"}
    if kind in HEAD_KINDS:
        head_dim = head_channels(model.config)
        heads = axis_length(model, f"{path}.{place.consumer}", output=False) // head_dim
        rows = sum(axis_length(model, f"{path}.{name}", output=True) for name in place.producers)
        shared, rest = divmod(rows - heads * head_dim, 2 * head_dim)  # as many keys as values
        if rest:
            raise ValueError(f"{path}: {rows} rows are no multiple of the {head_dim} channels of a head")
        groups = shared if kind == "query_heads" else 1
        spans = {"q": head_dim if kind == "query_heads" else heads // shared * head_dim}
        spans |= {"k": head_dim, "v": head_dim}
        counted = {"heads", "channels", "heads_per_group" if kind == "query_heads" else "groups"}

    def axis_members(name: str, runs: tuple[str, ...], output: bool) -> Iterator[Member]:
        module, offset = model.get_submodule(name), 0
        run_spans = [sum(spans[letter] for letter in run) for run in runs]
        for run, span in zip(runs, run_spans, strict=True):
            has_bias = output and bias_of(module) is not None
            if kind != "query_heads" or run == "q":
                yield Member(name, axis(module, output), span, offset, has_bias)
            offset += span * units

    letter = "n" if kind == "mlp" else "q"
    units = axis_length(model, f"{path}.{place.consumer}", output=False) // spans[letter]
    return Site(
        name=f"{path}.{kind}",
        kind=kind,
        units=units,
        block=block,
        blocks=(path,),
        producers=tuple(
            member
            for name, runs in place.producers.items()
            for member in axis_members(f"{path}.{name}", runs, output=True)
        ),
        consumers=tuple(axis_members(f"{path}.{place.consumer}", (letter,), output=False)),
        counts=tuple(
            Count(f"{path}.{module}", attribute)
            for (module, attribute), what in count_paths(place).items()
            if what in counted
        ),
        groups=groups,
        whole=f"{path}.{place.whole}" if place.whole else None,
    )


def block_site(model: PreTrainedModel) -> Site:
    """The site whose units are the model's blocks."""
    blocks = block_modules(model)
    return Site(f"{blocks[0].rsplit('.', 1)[0]}.block", "block", len(blocks), blocks=tuple(blocks))


def hidden_site(model: PreTrainedModel) -> Site:
    """The site whose units are the channels of the residual stream."""
    layout = layout_of(model)
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    norms = [f"{path}.{norm}" for path in block_modules(model) for norm in layout.norms]
    norms.append(f"{base}{layout.last_norm}")
    writers = [Member(f"{base}{name}", 1) for name in layout.embeddings]
    readers = []
    for path in block_modules(model):
        for kind, place in places_of(model).items():
            gone = kind == "attention" and is_skipped(model, kind, path)
            for name in () if gone else place.producers:
                module = model.get_submodule(f"{path}.{name}")
                readers.append(Member(f"{path}.{name}", axis(module, output=False)))
            name = f"{path}.{place.consumer}"
            module = model.get_submodule(name)
            writers.append(Member(name, axis(module, output=True), bias=bias_of(module) is not None))
    for name in norms:
        bias = bias_of(model.get_submodule(name)) is not None
        readers.append(Member(name, 0, bias=bias))
    head = model.get_output_embeddings()
    if head is not None:
        name = next(name for name, module in model.named_modules() if module is head)
        readers.append(Member(name, 1))
    units = weight_of(model.get_submodule(norms[0])).shape[0]
    return Site(
        f"{base}hidden", "hidden", units, None, (), tuple(writers), tuple(readers), norms=tuple(norms)
    )


def axis(module: nn.Module, output: bool) -> int:
    """The dimension of a weight that runs over outputs (or inputs): GPT-2's Conv1D is transposed."""
    return int(isinstance(module, Conv1D)) if output else int(not isinstance(module, Conv1D))


def axis_length(model: PreTrainedModel, name: str, output: bool) -> int:
    module = model.get_submodule(name)
    return weight_of(module).shape[axis(module, output)]

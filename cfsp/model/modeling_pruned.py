"""Pruned models: the modules and shapes that the stock classes of transformers lack.

Every checkpoint whose blocks differ contains this file as its remote code, so it imports only torch
and transformers. The config's `per_layer_config` holds the sizes of every block. The config's key
`pruned` says what has these sizes:

    blocks      path of the list of blocks
    names       width, heads, groups -> their names in the family's config
    head_dim    channels of one head
    linears     path in a block -> [outputs, inputs], each a text of the runs n, q, k, v, or null
    counts      [path in a block, attribute, width, heads, groups, heads_per_group or channels]
    attention   path in a block of the module that is removed with the last head
    biases      paths of the modules to which pruning added a bias
    modules     descriptions of modules that are not the family's: "class", and options for its `install`

A model whose blocks are those of its family has only the last key. An encoder-decoder has a table for each
of its two stacks, in a list `stacks`. Such a table has the sizes too, in its list `sizes`, with `cross`, the
heads that read the encoder, and `kept`: path of an attention in a block -> which heads of the bias that all
blocks share are left. In `linears` the run x has the channels of `cross`; `cross_attention` is as
`attention`.
"""

from torch import nn
from transformers.pytorch_utils import Conv1D

from cfsp.model.kept_heads import keep_heads

OWN_MODULES = {}
"""Name of a class of modules -> the class; a file that defines one adds it."""


class Constant(nn.Linear):
    """What is left of a linear layer without inputs. It returns its bias, or zeros.

    It keeps an empty weight, so that a class that expects the full weight refuses to load it.
    """

    def __init__(self, linear):
        nn.Module.__init__(self)  # Linear's would warn about its empty weight
        self.in_features, self.out_features = 0, linear_sizes(linear)[0]
        empty = linear.weight.new_empty(self.out_features, 0)
        self.weight = nn.Parameter(empty, requires_grad=linear.weight.requires_grad)
        self.bias = linear.bias

    def forward(self, input):
        """[..., anything] -> [..., outputs]"""
        constant = input.new_zeros(self.out_features) if self.bias is None else self.bias
        return constant.expand(*input.shape[:-1], -1)


CACHES = ("cache", "past_key_values", "layer_past")
"""What an attention's cache is called, by family and by version: transformers 5.24 renamed it."""


class SkippedAttention(nn.Module):
    """What is left of an attention without heads: the bias of its output layer.

    Its cache holds one zero per token, because transformers reads the number of past tokens from
    the first block's cache.
    """

    def __init__(self, name, output, layer_idx):
        nn.Module.__init__(self)  # not that of the attention class that `skipped` adds
        self.output_name, self.layer_idx = name, layer_idx
        self.add_module(name, output)

    def forward(self, hidden_states, *args, **kwargs):
        """[batch, tokens, hidden] -> the same shape, and empty attention weights [batch, 0, tokens, seen]"""
        batch, tokens = hidden_states.shape[:2]
        seen = tokens
        cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        if kwargs.get("key_value_states") is not None:  # a decoder's attention to the encoder's output
            seen = kwargs["key_value_states"].shape[1]
        elif cache is not None:
            cache = getattr(cache, "self_attention_cache", cache)
            nothing = hidden_states.new_zeros(batch, 1, tokens, 1)
            seen = cache.update(nothing, nothing, self.layer_idx)[0].shape[2]
        weights = hidden_states.new_zeros(batch, 0, tokens, seen)
        return self.get_submodule(self.output_name)(hidden_states[..., :0]), weights

    def __reduce__(self):
        return skipped, (type(self).__bases__[1],), self.__dict__


def skipped(attention):
    """Make a `SkippedAttention` that is also an `attention`: transformers collects weights by class."""
    kind = type("SkippedAttention", (SkippedAttention, attention), {})
    return kind.__new__(kind)


class LayerConfig:
    """The model's config with some attributes replaced for one module."""

    def __init__(self, config, **own):
        self.__dict__.update(own, _shared=config)

    def __getattr__(self, name):
        if name.startswith("__") or name == "_shared":  # copy and pickle ask before it is set
            raise AttributeError(name)
        return getattr(self._shared, name)


def set_count(module, attribute, value):
    """Set an attribute of a module. "config.x" sets x of the config for this module only."""
    if attribute.startswith("config."):
        if not isinstance(module.config, LayerConfig):
            module.config = LayerConfig(module.config)
        module, attribute = module.config, attribute.removeprefix("config.")
    setattr(module, attribute, value)


def get_count(module, attribute) -> int:
    """Return an attribute that `set_count` sets."""
    for name in attribute.split("."):
        module = getattr(module, name)
    return module


def linear_sizes(module):
    """Return (outputs, inputs) of a Linear or a Conv1D, whose weight is transposed."""
    shape = tuple(module.weight.shape)
    return shape[::-1] if isinstance(module, Conv1D) else shape


def resize_linear(module, outputs, inputs):
    """Resize a Linear or a Conv1D. Its values are undefined until weights are loaded."""
    if isinstance(module, Conv1D):
        module.nx, module.nf, shape = inputs, outputs, (inputs, outputs)
    else:
        module.in_features, module.out_features, shape = inputs, outputs, (outputs, inputs)
    module.weight = nn.Parameter(module.weight.new_empty(shape))
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.new_empty(outputs))


def add_bias(module):
    if module.bias is None:
        module.bias = nn.Parameter(module.weight.new_empty(linear_sizes(module)[0]))


def drop_attention(block, path, output, layer_idx):
    """Replace the attention at `path` of a block by a `SkippedAttention`.

    output: path in the block of the attention's output layer, whose bias stays.
    """
    name = output.removeprefix(f"{path}.")
    rest = skipped(type(block.get_submodule(path)))
    rest.__init__(name, Constant(block.get_submodule(output)), layer_idx)
    block.set_submodule(path, rest)


def drop_inputs(block, path):
    """Replace a linear layer that has lost all of its inputs by a `Constant`."""
    block.set_submodule(path, Constant(block.get_submodule(path)))


def rebuild(model, config):
    """Give a model that was built with the config's global sizes the sizes and modules of `config.pruned`."""
    table = config.pruned
    # The paths are those of the model with its head.
    without = f"{model.base_model_prefix}." if model.base_model is model else ""
    if "biases" in table:
        reshape(model, config, table, without)
    for own in table.get("modules", ()):
        options = {name: value for name, value in own.items() if name != "class"}
        OWN_MODULES[own["class"]].install(model, without=without, **options)


def reshape(model, config, table, without):
    """Resize every block of a model."""
    for path in table["biases"]:
        add_bias(model.get_submodule(path.removeprefix(without)))
    for stack in table.get("stacks", [table]):
        for index, block in enumerate(model.get_submodule(stack["blocks"].removeprefix(without))):
            own = stack["sizes"][index] if "sizes" in stack else block_numbers(config, index, stack["names"])
            reshape_block(block, index, stack, **own)


def block_numbers(config, index, names):
    """Return a block's sizes. Older versions leave `per_layer_config` as in JSON, with what differs alone."""
    sizes = config.per_layer_config
    if not isinstance(sizes, dict) or type(next(iter(sizes))) is not str:
        return {what: getattr(sizes[index], name) for what, name in names.items()}
    own = sizes.get(str(index), {})
    return {what: own[name] if name in own else getattr(config, name) for what, name in names.items()}


def reshape_block(block, index, table, width=0, heads=0, groups=None, cross=0, kept=None):
    """Resize a block.

    width: neurons; heads: query heads; groups: key/value groups (None: heads); cross: heads that read the
    encoder; kept: path of an attention -> its heads among those that share a bias.
    """
    for path, left in (kept or {}).items():
        keep_heads(block.get_submodule(path), left)
    groups = heads if groups is None else groups
    channels = heads * table["head_dim"]
    runs = {"n": width, "q": channels, "k": groups * table["head_dim"], "v": groups * table["head_dim"]}
    runs["x"] = cross * table["head_dim"]
    for path, axes in table["linears"].items():
        module = block.get_submodule(path)
        own = (sum(runs[letter] for letter in axis) if axis else None for axis in axes)
        sizes = zip(own, linear_sizes(module), strict=True)
        resize_linear(module, *(as_is if size is None else size for size, as_is in sizes))
    count = {"width": width}
    if heads:
        count |= {"heads": heads, "groups": groups, "channels": channels, "heads_per_group": heads // groups}
    if cross:
        count |= {"cross_heads": cross, "cross_channels": runs["x"]}
    for path, attribute, what in table["counts"]:
        if what in count:
            set_count(block.get_submodule(path), attribute, count[what])
    for path, (_, inputs) in table["linears"].items():
        if inputs == "n" and not width:
            drop_inputs(block, path)
        elif inputs == "q" and not heads:
            drop_attention(block, table["attention"], path, index)
        elif inputs == "x" and not cross:
            drop_attention(block, table["cross_attention"], path, index)


class PrunedConfig:
    """Mixin for a config: its global sizes are read without a warning.

    transformers warns of them, and its own validators read them. What reads sizes here reads the blocks' own.
    """

    def __getattribute__(self, key):
        try:
            read = super().__getattribute__("_getattr_without_heterogeneous_validation")
        except AttributeError:  # older versions do not warn
            read = super().__getattribute__
        return read(key)


class Pruned:
    """Mixin for a stock class: builds the pruned sizes, and loads only weights that fit exactly."""

    def __init__(self, config, *args, **kwargs):
        # The stock class reads global sizes; a config with `per_layer_config` refuses to return them. It
        # may also look for the family's base model by the class of the config.
        own, differing = type(config), config.__dict__.pop("_heterogeneity_spec", None)
        config.__class__ = next(kind for kind in own.__mro__ if kind.__module__.startswith("transformers."))
        try:
            super().__init__(config, *args, **kwargs)  # pyright: ignore[reportCallIssue]  # the stock class's
        finally:
            config.__class__ = own
            if differing is not None:
                config.__dict__["_heterogeneity_spec"] = differing
        rebuild(self, config)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info=False, **kwargs):
        """Load as transformers does, but refuse missing, unexpected or mismatched weights.

        A class without a head ignores the head's weights, and has a new pooler where none was saved.
        Raises ValueError if the weights are not those that the config describes.
        """
        load = super().from_pretrained  # pyright: ignore[reportAttributeAccessIssue]  # the stock class's
        model, info = load(*args, output_loading_info=True, **kwargs)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            found = sorted(map(str, info[problem]))
            if model.base_model is model and problem != "mismatched_keys":
                found = [name for name in found if problem[0] == "m" and not name.startswith("pooler.")]
            if found:
                names = f"{problem.replace('_', ' ')} in the checkpoint: {', '.join(found[:3])}"
                raise ValueError(f"{len(found)} {names}")
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args, save_original_format=False, **kwargs):
        """Save as transformers does, without renaming weights: remote code is loaded without renaming."""
        save = super().save_pretrained  # pyright: ignore[reportAttributeAccessIssue]  # the stock class's
        save(*args, save_original_format=save_original_format, **kwargs)

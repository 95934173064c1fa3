"""Routed MLPs: for every token a router chooses the neurons that are used. No weight is removed.

Every checkpoint of a routed model contains this file in its remote code, so it imports only torch,
transformers and its kernels. Neurons are chosen in experts, runs of `size` neurons that lie together. The
layers keep their names, weights and dense results; beside them is a module `routed`, which has the router.
"""

# layers get another class, and attributes with it
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportIncompatibleMethodOverride=false

import sys
from functools import cache

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cfsp.model.modeling_pruned import OWN_MODULES
from cfsp.model.routed_kernels import SUFFIX, TorchKernels, compiled
from cfsp.model.routed_triton import TritonKernels, triton
from cfsp.model.routers import make_router


def spread_experts(values, size):
    """Repeat the values of experts for their neurons. [rows, experts] -> [rows, neurons]"""
    return values if size == 1 else values.repeat_interleave(size, dim=1)


class RoutedMLP(nn.Module):
    """What the layers of one MLP share: the router, and what it has chosen for the present input.

    few: so many rows of input are computed with the chosen experts' weights alone, their union; all others
        with the whole matrices, and a mask; so are all where gradients are computed. Both are exact.
    soft: experts are multiplied by their scores while a router learns. compiled: use C++ on a CPU if it
        can be built.
    chosen: mask of the last input [rows, experts]. channels: masks of the inputs that each producer read.
    """

    def __init__(self, router, width, few=4, compiled=True):
        super().__init__()
        if width % router.size:
            raise ValueError(f"experts of {router.size} neurons; expected a size that divides {width}")
        self.router, self.width, self.few, self.compiled = router, width, few, compiled
        self.producers, self.consumer, self.soft = [], "", False
        self.chosen = self.scores = self.union = None
        self.channels = {}

    @classmethod
    def install(cls, model, producers, consumer, router, without="", **options):
        """Make the layers at these paths of a model a routed MLP. router: what it said of itself.

        without: prefix of the paths that this model lacks, because it has no head.
        """
        paths = [path.removeprefix(without) for path in (*producers, consumer)]
        layers = [model.get_submodule(path) for path in paths]
        weight = layers[-1].weight
        routed = cls(make_router(router), width_of(layers[-1]), **options).to(weight.device, weight.dtype)
        routed.producers, routed.consumer = [*producers], consumer
        parent = paths[0].rpartition(".")[0]
        (model.get_submodule(parent) if parent else model).add_module("routed", routed)
        for place, layer in enumerate(layers):
            part = -1 if place == len(producers) else place
            layer.__class__ = ROUTED[Conv1D if isinstance(layer, Conv1D) else nn.Linear]
            layer.routed = (routed, part)  # in a tuple: it is a module of one parent alone
        return routed

    def describe(self):
        """Return what `install` needs besides the weights, as JSON data."""
        return {
            "class": type(self).__name__,
            "producers": self.producers,
            "consumer": self.consumer,
            "router": self.router.describe(),
            "few": self.few,
        }

    def begin(self, x):
        """Choose the experts for an input. [rows, inputs]"""
        self.channels, self.union = {}, None
        self.scores = self.router.scores(x) if self.soft else None
        self.chosen = self.scores > self.router.threshold if self.soft else self.router.choose(x)
        if self.chosen is None or self.soft or torch.is_grad_enabled() or len(x) > self.few:
            return
        self.union = self.kernels(x).union(self.chosen[0] if len(x) == 1 else self.chosen.any(0))

    def kernels(self, x):
        """Return the kernels for an input. They are looked up anew: a copy of a library makes no sense."""
        return kernels_for(x.device.type, x.dtype, self.compiled, self.router.size)

    def produce(self, layer, part, x):
        """Return a producer's output; that of experts which no row has chosen may be zero.

        [..., inputs] -> [..., outputs]
        """
        rows = x.reshape(-1, x.shape[-1])
        if part == 0:
            self.begin(rows)
        mask = self.router.thin(rows, part)
        if mask is not None:
            self.channels[part] = mask
            x = x * mask.view(x.shape)
        if self.union is None:
            return layer.dense(x)
        out = self.kernels(rows).rows(
            rows, neuron_rows(layer, False), self.union, self.router.size, self.width
        )
        return with_bias(out, layer.bias).view(*x.shape[:-1], -1)

    def consume(self, layer, h):
        """Return the sum over the chosen experts. [..., neurons] -> [..., outputs]"""
        rows = h.reshape(-1, h.shape[-1])
        size = self.router.size
        if self.chosen is None:
            self.chosen, size = self.router.close(rows), 1
        if self.soft:
            return layer.dense((rows * spread_experts(self.scores, size).to(h.dtype)).view(h.shape))
        if self.union is None or len(rows) > 1:
            rows = rows * spread_experts(self.chosen, size)
        if self.union is None:
            return layer.dense(rows.view(h.shape))
        out = self.kernels(rows).columns(rows, neuron_rows(layer, True), self.union, size)
        return with_bias(out, layer.bias).view(*h.shape[:-1], -1)

    def shares(self):
        """Return the part of each matrix that every row of the last input needed. [rows, matrices]"""
        neurons = self.chosen.float().mean(1)
        parts = [self.channels.get(part) for part in range(len(self.producers))]
        found = [neurons if mask is None else mask.float().mean(1) for mask in parts]
        return torch.stack([*found, neurons], dim=1)


class Routed:
    """Mixin for a layer of a routed MLP."""

    def forward(self, input):
        """[..., inputs] -> [..., outputs]"""
        routed, part = self.routed
        if part == -1:
            return routed.consume(self, input)
        return routed.produce(self, part, input)

    def dense(self, input):
        """Return the result of the whole layer. [..., inputs] -> [..., outputs]"""
        return super().forward(input)


class RoutedLinear(Routed, nn.Linear):
    """A Linear of a routed MLP."""


class RoutedConv1D(Routed, Conv1D):
    """A Conv1D of a routed MLP: GPT-2's, whose weight is transposed."""


ROUTED = {nn.Linear: RoutedLinear, Conv1D: RoutedConv1D}


def uninstall(model):
    """Make all routed MLPs of a model dense again."""
    for module in [*model.modules()]:
        if isinstance(module, Routed):
            module.__class__ = Conv1D if isinstance(module, Conv1D) else nn.Linear
            del module.routed
        if isinstance(getattr(module, "routed", None), RoutedMLP):
            del module.routed


def routed_mlps(model):
    """Return path -> routed MLP, in the order of the blocks."""
    return {path: module for path, module in model.named_modules() if isinstance(module, RoutedMLP)}


def width_of(layer):
    """Return the number of inputs of a Linear or a Conv1D."""
    return layer.weight.shape[0] if isinstance(layer, Conv1D) else layer.weight.shape[1]


def with_bias(out, bias):
    return out if bias is None else out + bias


def neuron_rows(layer, of_inputs):
    """Return the weight with one neuron per row, each row contiguous. [neurons, others]

    Where the weight has its neurons in columns, its storage is transposed, once: the parameter keeps its
    name, its shape and its values, and there is no second copy.
    """
    weight = layer.weight
    transposed = isinstance(layer, Conv1D) != of_inputs
    rows = weight.t() if transposed else weight
    if not rows.is_contiguous():
        with torch.inference_mode(False), torch.no_grad():
            rows = rows.detach().clone(memory_format=torch.contiguous_format)
            layer.weight.data = rows.t() if transposed else rows
    return rows.detach()


@cache
def kernels_for(device, dtype, use_compiled, size):
    """Return the fastest kernels for a device and a dtype."""
    if device == "cuda" and triton is not None and not size & (size - 1):
        return TritonKernels()
    if device == "cpu" and use_compiled and dtype in SUFFIX and (found := compiled()):
        return found
    if device == "cpu" and use_compiled and dtype not in SUFFIX:
        print(f"routed MLPs run in PyTorch, not in C++, which has no kernels for {dtype}", file=sys.stderr)
    if device == "cuda":
        print("routed MLPs run in PyTorch, which waits for the GPU: no Triton, or experts of "
              f"{size} neurons; expected Triton and a power of two", file=sys.stderr)  # fmt: skip
    return TorchKernels()


OWN_MODULES["RoutedMLP"] = RoutedMLP

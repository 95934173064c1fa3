"""Layers whose sums have a fixed order, so that models of other widths can be compared bit for bit."""

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LANES = 64  # a multiple of what any vector unit takes at once
NONLINEAR = {F.silu, torch._C._nn.silu, torch._C._nn.gelu, torch.tanh, torch.Tensor.tanh}


class FixedSums(TorchFunctionMode):
    """Adds the products of a linear layer one input after the other, and rounds all of a nonlinearity alike.

    Kernels split a sum by its length, and compute the last elements of a tensor, which do not fill a vector,
    by another formula. Either changes the last bit when a width changes.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear or func is torch._C._nn.linear:
            given, weight, *bias = args
            return added_in_order(given, weight.T, bias[0] if bias else kwargs.get("bias"))
        if func is torch.addmm:  # GPT-2's Conv1D
            return added_in_order(args[1], args[2], args[0])
        if func in NONLINEAR:
            flat = args[0].contiguous().flatten()
            full = F.pad(flat, (0, -len(flat) % LANES))
            return func(full, *args[1:], **kwargs)[: len(flat)].view(args[0].shape)
        return func(*args, **kwargs)


def added_in_order(given, weight, bias):
    """Return `given` times `weight`. given: [..., inputs]; weight: [inputs, outputs]; -> [..., outputs]"""
    total = torch.zeros((), dtype=given.dtype)
    for place in range(len(weight)):
        total = total + given[..., place, None] * weight[place]
    return total if bias is None else total + bias

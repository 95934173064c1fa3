"""Routers: how a routed MLP chooses its neurons.

Every checkpoint of a routed model contains this file in its remote code, so it imports only torch. A router
describes itself by the name of its class and its options.
"""

# each router reads what it needs
# pyright: reportIncompatibleMethodOverride=false

import math

import torch
import torch.nn.functional as F
from torch import nn


class Router(nn.Module):
    """Chooses experts of `size` neurons. Which of the methods below has a result depends on the method.

    early: whether it chooses before anything of the MLP is computed. thins: whether producers read a part of
    their inputs.
    """

    early = False
    thins = False

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.options = {"size": size}

    def describe(self):
        """Return class and options, as JSON data."""
        return {"class": type(self).__name__, **self.options}

    def scores(self, x):
        """Return the scores of experts while a router learns. [rows, inputs] -> [rows, experts]"""
        raise ValueError(f"a {type(self).__name__} does not learn with its model; expected a LearnedRouter")

    def choose(self, x):
        """Return which experts an input needs; None: not known yet. [rows, inputs] -> [rows, experts]"""

    def thin(self, x, part):
        """Return which channels producer `part` reads; None: all. [rows, inputs] -> the same shape"""

    def close(self, h):
        """Return which activations are used, once all are known. [rows, neurons] -> the same shape"""


def most(scores, count):
    """Return the mask of the highest scores of every row, exactly `count`. [rows, experts]"""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(count, dim=1).indices, True)


class LearnedRouter(Router):
    """One or two linear layers on the MLP's input.

    LTE: one layer, and experts whose sigmoid is above the threshold (arXiv:2402.06126, eq. 1 and 2).
    MoEfication: two layers with a tanh on normalised inputs, and the `top` experts (arXiv:2110.01786).
    Deja Vu: two layers, a neuron is an expert, and the `top` ones (arXiv:2310.17157).

    hidden: width between two layers; None: one layer. top: number of experts; None: by the threshold.
    """

    early = True

    def __init__(
        self, inputs, experts, size, hidden=None, tanh=False, normalised=False, top=None, threshold=0.5
    ):
        super().__init__(size)
        if top is not None and not 1 <= top <= experts:
            raise ValueError(f"a router that takes {top} of {experts} experts; expected 1 to {experts}")
        self.options |= {"inputs": inputs, "experts": experts, "hidden": hidden, "tanh": tanh}
        self.options |= {"normalised": normalised, "top": top, "threshold": threshold}
        self.tanh, self.normalised, self.top, self.threshold = tanh, normalised, top, threshold
        self.first = None if hidden is None else nn.Linear(inputs, hidden, bias=False)
        self.last = nn.Linear(inputs if hidden is None else hidden, experts, bias=hidden is None)

    def logits(self, x):
        """[rows, inputs] -> [rows, experts]"""
        with torch.autocast(x.device.type, enabled=False):  # thresholds need the router's own dtype
            x = x.to(self.last.weight.dtype)
            x = F.normalize(x, dim=-1) if self.normalised else x
            if self.first is not None:
                x = torch.tanh(self.first(x)) if self.tanh else self.first(x)
            return self.last(x)

    def scores(self, x):
        """Return sigmoids, in float32. [rows, inputs] -> [rows, experts]"""
        return torch.sigmoid(self.logits(x).float())

    def choose(self, x):
        """Return which experts the MLP's input needs. [rows, inputs] -> [rows, experts]"""
        with torch.no_grad():
            logits = self.logits(x)
            if self.top is not None:
                return most(logits, self.top)
            return logits > math.log(self.threshold / (1 - self.threshold))


class OracleRouter(Router):
    """The experts with the largest sum of absolute activations: they are known only after all are computed.

    It saves nothing before the consumer, and bounds what a predictor of these experts can reach. With ReLU
    this is MoEfication's ground truth (arXiv:2110.01786, section 3.3).
    """

    def __init__(self, size, top):
        super().__init__(size)
        self.top = top
        self.options |= {"top": top}

    def close(self, h):
        """Return which activations are used. [rows, neurons] -> the same shape"""
        sums = h.abs().float().view(len(h), -1, self.size).sum(2)
        return most(sums, self.top).repeat_interleave(self.size, dim=1)


class ThresholdRouter(Router):
    """Inputs of every matrix that are above a threshold, of producers and consumer; nothing is learned.

    TEAL: |x_i| > t (arXiv:2408.14690). WINA: the `share` of the inputs with the largest |x_i| c_i, with c_i
    the norm of the weights that read channel i (arXiv:2505.19427); one number, or one per matrix.
    thresholds: one per matrix, the consumer's last. norms: [matrices] of these norms, each with one per
    channel; only with `weighted`.
    """

    thins = True

    def __init__(self, inputs, neurons, producers, weighted=False, size=1, share=None):
        super().__init__(size)
        self.options |= {"inputs": inputs, "neurons": neurons, "producers": producers, "weighted": weighted}
        self.options |= {"share": share}
        lengths = [inputs] * producers + [neurons]
        self.weighted = weighted
        self.shares = share if share is None or isinstance(share, list) else [share] * len(lengths)
        self.thresholds = nn.Parameter(torch.zeros(producers + 1), requires_grad=False)
        self.norms = nn.ParameterList(
            nn.Parameter(torch.ones(length), requires_grad=False) for length in lengths if weighted
        )

    def above(self, x, place):
        """Return which inputs of a matrix are above its threshold. [rows, inputs] -> the same shape"""
        scores = x.abs() * self.norms[place] if self.weighted else x.abs()
        if self.shares is not None:
            return most(scores, max(1, round(self.shares[place] * scores.shape[1])))
        return scores > self.thresholds[place]

    def thin(self, x, part):
        """Return which channels producer `part` reads. [rows, inputs] -> the same shape"""
        return self.above(x, part)

    def close(self, h):
        """Return which activations are used. [rows, neurons] -> the same shape"""
        return self.above(h, -1)


def make_router(described):
    """Return the router that `describe` described, with weights of its own."""
    options = dict(described)
    return {one.__name__: one for one in (LearnedRouter, OracleRouter, ThresholdRouter)}[
        options.pop("class")
    ](**options)

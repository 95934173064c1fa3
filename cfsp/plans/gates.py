"""Gates: multiply a unit's activation where it is read, without changing a shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from cfsp.model.block_states import states_in, states_out, with_states
from cfsp.model.sites import Site
from cfsp.model.weights import added_weight, path_outside, weight_of


class Gates:
    """Hold gates on a model inside a `with` block.

    gates: site name -> multiplier per unit [units]; sites without an entry stay open.
    fills: site name -> constant that a channel takes as its gate closes [units * span]:
        x -> g x + (1 - g) fill. Without an entry the constant is 0.
    weights: module -> the weight that it has inside the block (a refitted consumer's).
    biases: module -> vector that is added to its output inside the block [outputs].

        with Gates(model, sites, {"model.layers.0.mlp": mask}):
            logits = model(input_ids).logits

    A block whose gate is closed returns its input. Gates of residual channels act in the norms that
    read them, which then normalise over the open channels.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        gates: Mapping[str, Tensor],
        fills: Mapping[str, Tensor] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        biases: Mapping[str, Tensor] | None = None,
    ):
        self.model, self.sites, self.gates, self.fills = model, sites, gates, fills or {}
        self.weights, self.biases = weights or {}, biases or {}
        self._handles = []
        self._before: dict[str, Tensor] = {}

    def __enter__(self) -> Gates:
        for site in reversed(self.sites):  # where two sites meet, the first one's fill counts, as in surgery
            if site.name in self.gates:
                self._attach(site)
        for path, weight in self.weights.items():
            parameter, added = weight_of(self.model.get_submodule(path)), added_weight(self.model, path)
            new = weight.to(parameter) if added is None else (weight - added).to(parameter)
            self._before[path], parameter.data = parameter.data, new
        for path, bias in self.biases.items():
            module = self.model.get_submodule(path_outside(path))
            self._handles.append(module.register_forward_hook(self._shift(bias)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for path, weight in self._before.items():
            weight_of(self.model.get_submodule(path)).data = weight
        self._before.clear()

    def _attach(self, site: Site) -> None:
        module = self.model.get_submodule
        if site.units_are_blocks:
            for unit, path in enumerate(site.blocks):
                hook = self._bypass(site, unit)
                self._handles.append(module(path).register_forward_hook(hook, with_kwargs=True))
        elif site.units_are_residual_channels:
            for path in site.norms:
                self._handles.append(module(path).register_forward_pre_hook(self._centre(site)))
                self._handles.append(module(path).register_forward_hook(self._rescale(site)))
        else:
            hook = self._multiply(site)
            consumer = module(path_outside(site.consumers[0].module))
            self._handles.append(consumer.register_forward_pre_hook(hook))

    def _multiply(self, site: Site) -> Callable:
        def multiply(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            channels, *rest = inputs
            gate = self.gates[site.name].to(channels).repeat_interleave(site.span)
            gated = channels * gate
            if site.name in self.fills:
                gated = gated + (1 - gate) * self.fills[site.name].to(channels)
            return (gated, *rest)

        return multiply

    @staticmethod
    def _shift(bias: Tensor) -> Callable:
        def shift(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + bias.to(output)

        return shift

    def _bypass(self, site: Site, unit: int) -> Callable:
        def bypass(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
            before, after = states_in(args, kwargs), states_out(output)
            gated = before + self.gates[site.name][unit].to(after) * (after - before)
            return with_states(output, gated)

        return bypass

    def _centre(self, site: Site) -> Callable:
        """Return a hook that closes channels before a norm, so that it normalises over the open ones."""

        def centre(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            states, *rest = inputs
            gate = self.gates[site.name].to(states)
            if isinstance(module, nn.LayerNorm):
                states = states - (states * gate).sum(-1, keepdim=True) / gate.sum()
            return (states * gate / gate.mean().sqrt(), *rest)

        return centre

    def _rescale(self, site: Site) -> Callable:
        """Return a hook that closes channels after a norm with a bias, and undoes the scale of `_centre`."""

        def rescale(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            gate = self.gates[site.name].to(output)
            bias = getattr(module, "bias", None)
            shift = 0 if bias is None else bias
            return gate * (shift + (output - shift) * gate.mean().sqrt())

        return rescale

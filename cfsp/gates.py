"""Gates: multiply a unit's activation where its consumer reads it, without changing a shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from torch import Tensor, nn

from cfsp.sites import Site


class Gates:
    """Hold gates on a model for as long as the context lasts.

    gates: site name -> multiplier per unit [units]; sites without an entry stay open.
    fills: site name -> constant that a channel takes as its gate closes [units * span]:
        x -> g x + (1 - g) fill. Without an entry the constant is 0.

        with Gates(model, sites, {"model.layers.0.mlp": mask}):
            logits = model(input_ids).logits
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        gates: Mapping[str, Tensor],
        fills: Mapping[str, Tensor] | None = None,
    ):
        self.model, self.sites, self.gates, self.fills = model, sites, gates, fills or {}
        self._handles = []

    def __enter__(self) -> Gates:
        for site in self.sites:
            if site.name in self.gates:
                module = self.model.get_submodule(site.consumers[0].module)
                self._handles.append(module.register_forward_pre_hook(self._hook(site)))
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

    def _hook(self, site: Site):
        def multiply(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            channels, *rest = inputs
            gate = self.gates[site.name].to(channels).repeat_interleave(site.span)
            gated = channels * gate
            if site.name in self.fills:
                gated = gated + (1 - gate) * self.fills[site.name].to(channels)
            return (gated, *rest)

        return multiply

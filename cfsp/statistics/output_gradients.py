"""Output gradients: how the loss depends on a consumer's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.model.remaining import Remaining
from cfsp.model.sites import Site
from cfsp.statistics.base import Quantity
from cfsp.statistics.moments import full_float32


class OutputGradientMoment(Quantity):
    """E[g g^T], g the gradient of the loss by the consumer's output: an empirical Fisher matrix.

    The loss is summed over the predicted tokens and the mean is over them, so that d^T E[g g^T] d / 2 is an
    estimate of what an error d in every token's output costs, in nats per token: a factor of K-FAC (Martens
    and Grosse 2015, arXiv:1503.05671). [outputs, outputs], float64
    """

    name = "output_gradient_moment"
    backward = True
    of_dense = True  # else a backward pass through all later blocks, for every block

    @classmethod
    def of_remaining(cls, value: Tensor, remaining: Remaining) -> Tensor:
        """Return all of it: a removed unit leaves every output. [outputs, outputs]"""
        return value


class OutputMoments:
    """The sums of g g^T over the samples, by consumer. Each sample is one backward pass.

    factor: what the present sample's gradients are multiplied by, to be those of the sum over its tokens.
    """

    def __init__(self, sites: Sequence[Site]):
        for site in sites:
            if not site.consumers:
                raise ValueError(
                    f"{OutputGradientMoment.name} cannot be measured at {site.name}; leave {site.kind!r} out "
                    "of sites"
                )
        self.consumers = {site.name: site.consumers[0].module for site in sites}
        self.totals: dict[str, Tensor] = {}
        self.factor, self.count = 1.0, 0

    def begin(self, predicted: int, factor: float) -> None:
        """Begin a sample that predicts so many tokens."""
        self.factor = factor
        self.count += predicted

    @contextmanager
    def watching(self, model: PreTrainedModel) -> Iterator[None]:
        """Add up the gradients of backward passes."""
        with ExitStack() as stack:
            for path in {*self.consumers.values()}:
                stack.enter_context(self.watched(path, model.get_submodule(path)))
            yield

    @contextmanager
    def watched(self, path: str, consumer: nn.Module) -> Iterator[None]:
        def seen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            leaf = not output.requires_grad  # no weight before it is trained
            output.requires_grad_()
            output.register_hook(lambda gradient: self.add(path, gradient))
            return output.clone() if leaf else output  # Falcon adds to it in place, which no leaf allows

        handle = consumer.register_forward_hook(seen)
        try:
            yield
        finally:
            handle.remove()

    def add(self, path: str, gradient: Tensor) -> None:
        """Add the products of one sample's gradients. [1, tokens, outputs]"""
        rows = gradient.detach().flatten(0, -2).float() * self.factor
        with full_float32():
            products = (rows.T @ rows).double()
        self.totals[path] = self.totals[path] + products if path in self.totals else products

    def of_site(self, site: Site) -> Tensor:
        """Return the mean over the predicted tokens. [outputs, outputs], float64

        Raises ValueError if no sample used the consumer, or if a gradient was NaN or infinite.
        """
        total = self.totals.get(self.consumers[site.name])
        if total is None:
            raise ValueError(f"{site.name}: no calibration sample uses it; leave it out of sites")
        if not total.diagonal().isfinite().all():
            raise ValueError(
                f"{OutputGradientMoment.name} is NaN or infinite at {site.name}; check the weights, or load "
                "the model with dtype=float32"
            )
        return total / self.count

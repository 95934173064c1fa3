"""FLAP: keep the channels that fluctuate; a constant one can be replaced by its mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cfsp.checks import check_choice, check_number
from cfsp.criteria.base import Criterion
from cfsp.model.views import UnitView


@dataclass(frozen=True)
class FLAP(Criterion):
    """Fluctuation of a unit's channels, weighted by the consumer's weights.

    Per channel c of the consumer W, with mean m_c of its input over tokens:

        wifv  E[(x_c - m_c)^2] ||W_:c||^2
        ifv   E[(x_c - m_c)^2]
        wifn  mean_o |W_oc| sqrt(E[x_c^2])

    score_u = mean over the unit's channels of the metric, standardised over all channels of the
    site (no unit), so that sites can be ranked against each other by `global_rank`.

    An et al. 2023, arXiv:2312.11983.

    Differs from the released code: the variance is exact (there: a sum is multiplied by an aliased
    mean, the first sample is ignored and the order of samples matters; `variance: released`
    reproduces it), and `attention_power` is 1 (there: 2, without a reason given).
    """

    metric: str = "wifv"
    variance: str = "exact"
    standardise: bool = True
    attention_power: float = 1.0

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, ("wifv", "ifv", "wifn"))
        check_choice("variance", self.variance, ("exact", "released"))
        check_number("attention_power", self.attention_power, least=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"input_sq_mean" if self.metric == "wifn" else self._variance})

    @property
    def _variance(self) -> str:
        return "input_var" if self.variance == "exact" else "input_var_released"

    def score(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        metric = self.channel_metric(view, stat)
        if view.units_are_whole_heads:
            metric = self.powered(metric)
        if self.standardise:
            # Equal channels, or a single one, have no spread: score them 0, not 0/0.
            spread = metric.std(correction=min(1, metric.numel() - 1))
            metric = (metric - metric.mean()) / spread.clamp_min(torch.finfo(metric.dtype).tiny)
        return metric.mean(1)

    def powered(self, metric: Tensor) -> Tensor:
        """Return metric ** attention_power [units, span]. Raises ValueError at infinity, NaN or zeros."""
        found = metric**self.attention_power
        if not found.isfinite().all() or (metric.any() and not found.any()):
            raise ValueError(
                f"attention_power={self.attention_power:g}: the metric over- or underflows; expected 1 or 2"
            )
        return found

    def channel_metric(self, view: UnitView, stat: Mapping[str, Tensor]) -> Tensor:
        """Return the metric before standardisation. [units, span]"""
        if self.metric == "wifn":
            rms = stat["input_sq_mean"].sqrt().view(view.units, view.span)
            return rms * sum(consumer.abs().mean(2) for consumer in view.consumers())
        variance = stat[self._variance].view(view.units, view.span)
        if self.metric == "ifv":
            return variance
        return variance * sum(consumer.square().sum(2) for consumer in view.consumers())

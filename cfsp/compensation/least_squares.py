"""Least squares: refit the consumer's kept weights to a target output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cfsp.checks import check_choice
from cfsp.compensation.base import TARGETS, Compensation, check_fitted
from cfsp.model.views import UnitView
from cfsp.statistics.moments import HELD_OUT, MOMENTS
from cfsp.statistics.regression import SCALES, channels, own_output, refit, squared_error

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The values that `ridge: auto` tries."""


@dataclass(frozen=True, kw_only=True)
class LeastSquares(Compensation):
    """V = argmin E|t - V^T x_K - b|^2 + ridge |V - V_0|^2 over the kept channels K of the consumer.

    With H = E[x x^T] and C = E[x t^T]: V = (H_KK + ridge I)^-1 (C_K + ridge V_0). For t = W^T x this is
    the optimal brain surgeon's update of all removals together (Hassibi and Stork 1993).

    ridge: relative to the mean or the median of H's diagonal (`scale`); or "auto": the best of 1e-5 to 1 on
        every 8th calibration sample; the final fit then uses all samples.
    scale: massive activations, a few channels of real models, make the mean too large for all others.
    towards: what the ridge pulls to: the kept weights as they are ("kept", as the criterion `obs` does) or
        V_0 = 0 ("zero", a plain ridge), which a ridge of 0.1 would shrink.
    constant: fit a bias b too (the consumer gets one if it had none).
    target: the output t to fit: "own" (the consumer's present output, on its present inputs), "dense" (its
        output in the dense model) or "residual" (what moves the present residual stream to the dense
        model's). The last two need `schedule=blockwise` and also correct the errors of earlier blocks:
        OSSCAR (Meng et al. 2024, arXiv:2403.12983) fits to the dense model's outputs.
    bridge: also refit the MLP before each run of dropped blocks (`allocator.drop_blocks`) to replace the
        run's output, as the compensation `bridge` does.
    tokens: how their errors count: "equal", or "relative" to each token's output, for models that norm what
        the consumer gives (Gemma, OLMo 2). Only with the target "own".
    """

    ridge: float | Literal["auto"] = 0.1
    scale: str = "median"
    towards: str = "kept"
    constant: bool = False
    target: str = "own"
    tokens: str = "equal"
    bridge: bool = False
    rewrites = True

    def __post_init__(self) -> None:
        if self.ridge != "auto" and self.ridge <= 0:
            raise ValueError(f"compensation ridge={self.ridge!r}: expected a number above 0, or auto")
        check_choice("scale", self.scale, SCALES)
        check_choice("towards", self.towards, ("zero", "kept"))
        check_choice("target", self.target, TARGETS)
        check_choice("tokens", self.tokens, MOMENTS)
        if self.tokens != "equal" and self.bridge:
            raise ValueError(f"compensation tokens={self.tokens} with bridge=true; expected tokens=equal")
        if self.tokens != "equal" and self.target != "own":
            raise ValueError(
                f"compensation tokens={self.tokens} with target={self.target}; expected target=own, or "
                "tokens=equal"
            )

    @property
    def bridges(self) -> bool:
        return self.bridge

    @property
    def needs(self) -> frozenset[str]:
        moment = MOMENTS[self.tokens]
        held_out = {f"{moment}_held_out"} if self.ridge == "auto" else set()
        return frozenset({moment, "input_tokens"} | held_out)

    def check_samples(self, count: int, total: int) -> None:
        if self.ridge == "auto" and count < HELD_OUT:
            of = "" if count == total else f" of {total} to fit to"
            raise ValueError(
                f"compensation ridge=auto holds out every {HELD_OUT}th calibration sample, and there are "
                f"{count}{of}; expected {HELD_OUT} or more, or a number"
            )

    @property
    def adds(self) -> frozenset[str]:
        return frozenset({"bias"} if self.constant else ())

    def compensate(
        self, view: UnitView, stat: Mapping[str, Tensor], keep: Sequence[int]
    ) -> dict[str, Tensor]:
        weight = view.consumers()[0].flatten(0, 1).double()  # [channels, outputs]
        moment, cross = moments(stat, weight, tokens=self.tokens)
        places = channels(keep, view.span, moment.device)
        prior = weight[places] if self.towards == "kept" else None
        ridge = self.ridge
        if ridge == "auto":
            ridge = self.best_ridge(stat, weight, places, prior)
        whose = f"{view.name}: compensation ridge"
        consumer, bias = refit(moment, cross, places, ridge, prior, self.constant, whose, self.scale)
        check_fitted(view.name, consumer)
        if consumer.any() and not consumer.float().any():  # they underflow
            raise ValueError(f"{whose}={ridge:g} shrinks all weights to zero; expected a smaller one")
        return {"consumer": consumer.float().cpu()} | ({} if bias is None else {"bias": bias.float().cpu()})

    def best_ridge(
        self, stat: Mapping[str, Tensor], weight: Tensor, places: Tensor, prior: Tensor | None
    ) -> float:
        """Return the ridge whose fit to the other samples has the least error on the held-out ones."""
        (moment, cross), held_out = (moments(stat, weight, part, self.tokens) for part in ("", "_held_out"))
        rest = moment - held_out[0], cross - held_out[1]
        errors = {}
        for ridge in RIDGES:
            with suppress(ValueError):  # too small a ridge; if all are, the final fit raises
                fitted = refit(*rest, places, ridge, prior, self.constant, scale=self.scale)
                errors[ridge] = float(squared_error(*held_out, places, *fitted))
        return min(errors, key=errors.__getitem__, default=RIDGES[-1])


def moments(
    stat: Mapping[str, Tensor], weight: Tensor, part: str = "", tokens: str = "equal"
) -> tuple[Tensor, Tensor]:
    """Return H [channels + 1, channels + 1] and C [channels + 1, outputs] of a site.

    The target is the schedule's; without one, the consumer's own output.
    """
    moment = stat[f"{MOMENTS[tokens]}{part}"]
    target = stat.get(f"target_moment{part}")
    return moment, own_output(moment, weight) if target is None else target

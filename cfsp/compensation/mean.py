"""Mean compensation: FLAP's bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cfsp.compensation.base import Compensation
from cfsp.model.views import UnitView


@dataclass(frozen=True)
class MeanCompensation(Compensation):
    """A removed channel c counts as E[x_c]: b += sum over removed c of W_:c E[x_c].

    The baseline bias of FLAP (An et al. 2023, arXiv:2312.11983).

    Differs from the released code: the mean is over tokens for every batch size, in float32
    (there: in float16, and too small by a factor of the batch size).
    """

    needs = frozenset({"input_mean"})

    @property
    def adds(self) -> frozenset[str]:
        return frozenset({"fill"})

    def compensate(
        self, view: UnitView, stat: Mapping[str, Tensor], keep: Sequence[int]
    ) -> dict[str, Tensor]:
        return {"fill": stat["input_mean"].float().cpu()}

"""Regression on moments: the best consumer for some of its channels, and the cost of removing units.

Notation: x the consumer's input and a constant 1 [channels + 1], t its target output [outputs],
H = E[x x^T] (`cfsp.statistics.moments`), C = E[x t^T] [channels + 1, outputs], W the weights
[channels, outputs], all float64. The ridge is relative to the mean or the median of H's diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SCALES = ("mean", "median")
"""What a ridge is relative to: the mean or the median of H's diagonal. A few channels of massive activations
(Sun et al. 2024, arXiv:2402.17762) make the mean, and so the ridge, far too large for all others."""

COMPACT = 0.8
"""Fraction of units left below which the matrices are copied without the removed ones."""


def own_output(moment: Tensor, weight: Tensor) -> Tensor:
    """Return C for the consumer's present output without its bias as target: E[x (W^T x)^T].

    moment: H [channels + 1, channels + 1]. weight: [channels, outputs]. -> [channels + 1, outputs]
    """
    return moment[:, :-1] @ weight


def damping(diagonal: Tensor, ridge: float, scale: str = "mean") -> Tensor:
    """Return ridge x the mean of H's diagonal, or the median of what is not zero there. []

    ridge alone if the consumer's input is always zero. diagonal: without the constant [channels].
    """
    if not (diagonal > 0).any():
        return torch.full_like(diagonal[0], ridge)
    return ridge * (diagonal.mean() if scale == "mean" else diagonal[diagonal > 0].median())


def cholesky(matrix: Tensor, ridge: float, what: str = "ridge") -> Tensor:
    """Return the lower Cholesky factor of a damped matrix. [features, features] -> [features, features]

    what: the ridge's name in an error. Raises ValueError if the matrix is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.any():
        raise ValueError(
            f"{what}={ridge:g} does not make the second moments positive definite; expected a larger one"
        )
    return factor


def refit(
    moment: Tensor,
    cross: Tensor,
    places: Tensor,
    ridge: float,
    prior: Tensor | None,
    constant: bool,
    what: str = "ridge",
    scale: str = "mean",
) -> tuple[Tensor, Tensor | None]:
    """Return the weights of the kept channels that minimise E|t - V^T x_K - b|^2 + ridge |V - prior|^2.

    V = (H_KK + ridge I)^-1 (C_K + ridge prior), where b is one more channel without a ridge.

    places: of the kept channels [kept]. prior: the ridge pulls V towards it [kept, outputs]; None: 0.
    what: the ridge's name in an error. scale: what the ridge is relative to; see `SCALES`.
    -> V [kept, outputs], b [outputs], or None without a constant.

    Raises:
        ValueError: the damped moments are not positive definite.
    """
    penalty = damping(moment.diagonal()[:-1], ridge, scale)
    kept = len(places)
    features = torch.cat([places, places.new_tensor([len(moment) - 1])]) if constant else places
    left = moment[features][:, features].clone()
    left.diagonal()[:kept] += penalty
    right = cross[features].clone()
    if prior is not None:
        right[:kept] += penalty * prior
    solution = torch.cholesky_solve(right, cholesky(left, ridge, what))
    return solution[:kept], solution[kept] if constant else None


def unit_factors(
    moment: Tensor,
    cross: Tensor,
    weight: Tensor,
    places: Tensor,
    span: int,
    ridge: float,
    what: str = "ridge",
    scale: str = "mean",
) -> Tensor:
    """Return the factors that minimise E|t - sum_u s_u W_u^T x_u|^2 + ridge |s - 1|^2 over the kept units.

    With y_u = W_u^T x_u: A_uv = E[y_u . y_v], the sum of H o (W W^T) over the channels of u and v, and
    b_u = E[y_u . t], the sum of C o W over those of u. s = (A + ridge I)^-1 (b + ridge 1).

    moment, cross: H [channels + 1, channels + 1] and C [channels + 1, outputs]. weight: W
    [channels, outputs]. places: channels of the kept units, unit by unit [kept * span]. -> s [kept]

    Raises:
        ValueError: the damped A is not positive definite.
    """
    left = weight[places]
    units = len(places) // span
    products = (moment[places][:, places] * (left @ left.T)).view(units, span, units, span)
    given = products.sum((1, 3))
    aimed = (cross[places] * left).view(units, -1).sum(1)
    penalty = damping(given.diagonal(), ridge, scale)
    given.diagonal().add_(penalty)
    right = (aimed + penalty)[:, None]
    return torch.cholesky_solve(right, cholesky(given, ridge, what))[:, 0]


def squared_error(
    moment: Tensor, cross: Tensor, places: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Return E|t - V^T x_K - b|^2 - E|t|^2, which ranks solutions without E|t|^2. []

    moment, cross: H [channels + 1, channels + 1] and C [channels + 1, outputs]. places: of the kept channels
    [kept]. weight, bias: V [kept, outputs] and b [outputs].
    """
    if bias is not None:
        places = torch.cat([places, places.new_tensor([len(moment) - 1])])
        weight = torch.cat([weight, bias[None]])
    square = (moment[places][:, places] @ weight * weight).sum()
    return square - 2 * (cross[places] * weight).sum()


def centred(moment: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Return H and C of the centred channels, that is, after a constant has been fitted.

    [channels + 1, channels + 1], [channels + 1, outputs] -> [channels, channels], [channels, outputs]
    """
    mean, share = moment[:-1, -1:], moment[-1, -1]
    return moment[:-1, :-1] - mean @ mean.T / share, cross[:-1] - mean @ cross[-1:] / share


def removal_path(inverse: Tensor, weight: Tensor, span: int, share: float = 0.0) -> tuple[Tensor, Tensor]:
    """Remove units greedily, the cheapest first, until none is left.

    A unit with channels P costs tr(W_P^T [(H^-1)_PP]^-1 W_P) if the others are refitted (block OBS: Hassibi
    and Stork 1993; Frantar and Alistarh 2022, arXiv:2208.11580). After each removal

        W    <- W    - H^-1_:P [(H^-1)_PP]^-1 W_P
        H^-1 <- H^-1 - H^-1_:P [(H^-1)_PP]^-1 H^-1_P:

    inverse: of the damped H [channels, channels]. weight: [channels, outputs]. share: fraction of the units
    left that is removed before costs are computed again; 0: one unit at a time.
    -> the units in order of removal, and the cost of each [units] x 2
    """
    inverse, weight = inverse.clone(), weight.clone()
    units = torch.arange(len(inverse) // span, device=inverse.device)
    out = torch.zeros(len(units), dtype=torch.bool, device=inverse.device)
    left, order, costs = len(units), [], []
    while left:
        cost = removal_costs(inverse, weight, span, out)
        picked = cost.topk(max(1, int(share * left)), largest=False).indices
        order.append(units[picked])
        costs.append(cost[picked])
        downdate(inverse, weight, channels(picked, span, inverse.device))
        out[picked] = True
        left -= len(picked)
        if left < COMPACT * len(units):
            stays = (~out).repeat_interleave(span).nonzero().flatten()
            inverse, weight = inverse[stays][:, stays], weight[stays]
            units, out = units[~out], out[~out]
    return torch.cat(order), torch.cat(costs)


def removal_costs(inverse: Tensor, weight: Tensor, span: int, out: Tensor | None = None) -> Tensor:
    """Return tr(W_P^T [(H^-1)_PP]^-1 W_P) of every unit; infinity for those in `out`. [units]"""
    blocks = unit_blocks(inverse, span)
    if out is not None and out.any():
        blocks = torch.where(out[:, None, None], torch.eye(span).to(blocks), blocks)
    costs = block_costs(blocks, weight)
    return costs if out is None else costs.masked_fill(out, torch.inf)


def unit_blocks(matrix: Tensor, span: int) -> Tensor:
    """Return every unit's diagonal block of a matrix over channels. [units, span, span]"""
    units = len(matrix) // span
    return matrix.view(units, span, units, span).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def block_costs(blocks: Tensor, weight: Tensor) -> Tensor:
    """Return tr(W_P^T B_P^-1 W_P) of every unit. B: [units, span, span], W: [channels, outputs]. [units]"""
    rows = weight.view(len(blocks), blocks.shape[1], -1)
    if blocks.shape[1] == 1:
        return rows.square().sum((1, 2)) / blocks.flatten()
    return (rows * torch.linalg.solve(blocks, rows)).sum((1, 2))


def downdate(inverse: Tensor, weight: Tensor, gone: Tensor) -> None:
    """Update H^-1 and W in place to the best fit without these channels. Their own rows become zero.

    gone: [channels]
    """
    across = inverse[gone]
    solved = torch.linalg.solve(across[:, gone], across)  # [gone, channels]
    weight.addmm_(solved.T, weight[gone], alpha=-1)
    inverse.addmm_(across.T, solved, alpha=-1)


def swap(
    damped: Tensor, cross: Tensor, keep: Sequence[int], span: int, most: int, groups: int = 1
) -> tuple[list[int], int]:
    """Exchange units, one for one, as long as an exchange lowers the error.

    damped: H of the channels plus the ridge, without the constant; cross: C plus ridge times the prior.
    most: maximum number of exchanges. groups: equal runs of units; both units of an exchange are in one run.
    -> the kept units in ascending order, and the number of exchanges
    """
    inside, run = sorted(keep), len(damped) // span // groups
    for made in range(most):
        outside = sorted(set(range(run * groups)) - set(inside))
        pair = exchange(damped, cross, inside, outside, span, run) if inside and outside else None
        if pair is None:
            return inside, made
        inside = sorted({*inside, pair[0]} - {pair[1]})
    return inside, most


def exchange(
    damped: Tensor, cross: Tensor, inside: Sequence[int], outside: Sequence[int], span: int, run: int
) -> tuple[int, int] | None:
    """Return the unit to add and the unit to remove. None: no exchange lowers the error.

    It tries the units outside in order of how much they would lower the error. Unit u is added if it lowers
    the error by more than the cheapest unit of its run then costs. With A = H_KK^-1, V = A C_K, B = A H_Ku,
    S = H_uu - H_uK B (of u, unexplained by the kept K) and R = C_u - B^T C_K (of C, unexplained by K), after
    adding u

        A <- A + B S^-1 B^T,    V <- V - B S^-1 R,    the error falls by tr(R^T S^-1 R).
    """
    kept, out = (channels(units, span, damped.device) for units in (inside, outside))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[kept][:, kept]))
    weight, across = inverse @ cross[kept], inverse @ damped[kept][:, out]
    rest = cross[out] - across.T @ cross[kept]
    left = unit_blocks(damped[out][:, out] - damped[out][:, kept] @ across, span)
    gains, blocks = block_costs(left, rest), unit_blocks(inverse, span)
    runs = torch.as_tensor(inside, device=damped.device) // run
    for place in gains.argsort(descending=True).tolist():
        own = slice(place * span, (place + 1) * span)
        reached = across[:, own]
        scaled = torch.linalg.solve(left[place], reached.T).T.reshape(len(inside), span, span)
        beside = blocks + reached.view(len(inside), span, span) @ scaled.transpose(1, 2)
        costs = block_costs(beside, weight - reached @ torch.linalg.solve(left[place], rest[own]))
        costs = costs.masked_fill(runs != outside[place] // run, torch.inf)
        if costs.min() < gains[place] * (1 - 1e-9):
            return outside[place], inside[int(costs.argmin())]
    return None


def channels(units: Sequence[int] | Tensor, span: int, device: torch.device) -> Tensor:
    """Return the channels of some units. [units * span]"""
    first = torch.as_tensor(units, dtype=torch.long, device=device)[:, None] * span
    return (first + torch.arange(span, device=device)).flatten()

"""Kernels of routed MLPs on a GPU, in Triton.

Every checkpoint of a routed model contains this file in its remote code. Nothing here waits for the device:
the grid covers all experts, and the programs of experts that no row has chosen end at once. So a decoding
step can be captured in a CUDA graph.
"""

# triton is there on a GPU alone
# pyright: reportMissingImports=false, reportOptionalMemberAccess=false, reportInvalidTypeForm=false, reportCallIssue=false, reportIndexIssue=false

import torch

try:
    import triton
    import triton.language as tl
    from triton import jit
    from triton.language import constexpr
except ImportError:  # on a CPU there is none

    def jit(function):
        return function

    triton = tl = None
    constexpr = int


@jit
def chosen_rows(
    x, weight, chosen, out, inputs, outputs, width, COUNT: constexpr, SIZE: constexpr, BLOCK: constexpr
):
    """Products with the rows of one expert (axis 0) in one run of the neurons (axis 1)."""
    expert, run = tl.program_id(0), tl.program_id(1)
    neurons = tl.arange(0, SIZE)
    rows = run * width + expert * SIZE + neurons
    open_here = tl.load(chosen + expert) != 0
    for one in tl.static_range(COUNT):
        sums = tl.zeros((SIZE,), dtype=tl.float32)
        if open_here:
            for start in range(0, inputs, BLOCK):
                places = start + tl.arange(0, BLOCK)
                inside = places < inputs
                values = tl.load(x + one * inputs + places, mask=inside, other=0.0).to(tl.float32)
                own = tl.load(
                    weight + rows.to(tl.int64)[:, None] * inputs + places[None, :],
                    mask=inside[None, :],
                    other=0.0,
                )
                sums += tl.sum(own.to(tl.float32) * values[None, :], axis=1)
        tl.store(out + one * outputs + rows, sums.to(out.dtype.element_ty))


@jit
def chosen_columns(
    h, weight, chosen, out, experts, width, outputs,
    SPLITS: constexpr, COUNT: constexpr, SIZE: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Sums over every SPLITS-th expert (axis 1) of a tile of outputs (axis 0)."""
    tile, split = tl.program_id(0), tl.program_id(1)
    places = tile * BLOCK + tl.arange(0, BLOCK)
    inside = places < outputs
    neurons = tl.arange(0, SIZE)
    for one in tl.static_range(COUNT):
        sums = tl.zeros((BLOCK,), dtype=tl.float32)
        for expert in range(split, experts, SPLITS):
            if tl.load(chosen + expert) != 0:
                rows = expert * SIZE + neurons
                factors = tl.load(h + one * width + rows).to(tl.float32)
                own = tl.load(
                    weight + rows.to(tl.int64)[:, None] * outputs + places[None, :],
                    mask=inside[None, :],
                    other=0.0,
                )
                sums += tl.sum(own.to(tl.float32) * factors[:, None], axis=0)
        tl.store(out + (split * COUNT + one) * outputs + places, sums, mask=inside)


class TritonKernels:
    """The kernels of `TorchKernels` on a GPU. An expert's size must be a power of two."""

    BLOCK = 256
    SPLITS = 16
    """Programs that share the experts of one tile of outputs. Their sums are added in one fixed order."""

    def union(self, chosen):
        """Return which experts are read, for the kernels. [experts]"""
        return chosen.to(torch.int32)

    def rows(self, x, weight, union, size, width):
        """Return the outputs of the chosen experts. [rows, inputs] -> [rows, outputs]"""
        x = x.contiguous()
        out = x.new_empty(len(x), len(weight))
        grid = (len(union), len(weight) // width)
        chosen_rows[grid](
            x, weight, union, out, x.shape[1], len(weight), width, COUNT=len(x), SIZE=size, BLOCK=self.BLOCK
        )
        return out

    def columns(self, h, weight, union, size):
        """Return the sum over the chosen experts. [rows, neurons] -> [rows, outputs]"""
        h, outputs = h.contiguous(), weight.shape[1]
        splits = min(self.SPLITS, len(union))
        parts = torch.empty(splits, len(h), outputs, dtype=torch.float32, device=h.device)
        grid = (-(-outputs // self.BLOCK), splits)
        chosen_columns[grid](
            h, weight, union, parts, len(union), len(weight), outputs,
            SPLITS=splits, COUNT=len(h), SIZE=size, BLOCK=self.BLOCK,
        )  # fmt: skip
        return parts.sum(0).to(h.dtype)

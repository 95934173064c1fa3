"""Compare the Triton kernels with the masked product, in Triton's interpreter: no GPU is needed."""

import itertools
import sys

import torch

from cfsp.model.routed_triton import TritonKernels

if __name__ == "__main__":
    kernels, drawn = TritonKernels(), torch.Generator().manual_seed(0)
    for size, rows, runs in itertools.product((1, 8, 32), (1, 4), (1, 2)):
        experts, inputs = 6, 300  # more than a block of 256, and no multiple of it
        width = experts * size
        weight = torch.randn(runs * width, inputs, generator=drawn)
        x = torch.randn(rows, inputs, generator=drawn)
        chosen = torch.tensor([True, False, True, True, False, False])
        union, used = kernels.union(chosen), chosen.repeat_interleave(size)
        found = kernels.rows(x, weight, union, size, width)
        torch.testing.assert_close(found, (x @ weight.T) * used.repeat(runs), rtol=1e-4, atol=1e-4)
        h = torch.randn(rows, width, generator=drawn)
        found = kernels.columns(h, weight[:width], union, size)
        torch.testing.assert_close(found, (h * used) @ weight[:width], rtol=1e-4, atol=1e-4)
    sys.stdout.write("equal")

"""Kernels of routed MLPs: products with chosen rows of a matrix, in PyTorch or in C++.

Every checkpoint of a routed model contains this file in its remote code, so it imports only torch and the
standard library. A kernel is for a few rows of input. All of them read only the weights of chosen experts:

    rows      [rows, inputs] x [outputs, inputs] -> [rows, outputs]; outputs of other experts are 0
    columns   [rows, neurons] x [neurons, outputs] -> [rows, outputs]; other experts' neurons are skipped
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F


class TorchKernels:
    """Slices of the matrices, in plain PyTorch. Chosen experts that lie together are one slice."""

    def union(self, chosen):
        """Return the first and last neuron of every run of chosen experts, in experts. [experts] -> pairs"""
        found = chosen.nonzero().flatten().tolist()
        breaks = [place for place in range(1, len(found)) if found[place] != found[place - 1] + 1]
        ends = [0, *breaks, len(found)]
        return [(found[first], found[last - 1] + 1) for first, last in pairwise(ends) if last]

    def rows(self, x, weight, union, size, width):
        """Return the outputs of the chosen experts. width: neurons; a fused weight has several runs of them.

        [rows, inputs] -> [rows, outputs]
        """
        out = x.new_zeros(len(x), len(weight))
        for start in range(0, len(weight), width):
            for first, last in union:
                run = slice(start + first * size, start + last * size)
                if len(x) == 1:  # several times as fast in bfloat16
                    torch.mv(weight[run], x[0], out=out[0, run])
                else:
                    out[:, run] = x @ weight[run].t()
        return out

    def columns(self, h, weight, union, size):
        """Return the sum over the chosen experts. [rows, neurons] -> [rows, outputs]"""
        if h.dtype == torch.bfloat16 and union:  # sums in float32, and is twice as fast as slices
            places = torch.cat([torch.arange(first * size, last * size) for first, last in union])
            places = places.to(h.device).expand(len(h), -1).contiguous()
            return F.embedding_bag(places, weight, per_sample_weights=h.gather(1, places), mode="sum")
        out = h.new_zeros(len(h), weight.shape[1])
        for first, last in union:
            run = slice(first * size, last * size)
            out.addmm_(h[:, run], weight[run])
        return out


SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""Dtype -> what the names of its functions in C++ end in."""


class CompiledKernels:
    """The same in C++, for float32 and bfloat16; sums are in float32."""

    def __init__(self, library):
        self.library = library

    def union(self, chosen):
        """Return the chosen experts. [experts] -> [chosen], integers"""
        return chosen.nonzero().flatten()

    def rows(self, x, weight, union, size, width):
        """Return the outputs of the chosen experts. [rows, inputs] -> [rows, outputs]"""
        x = x.contiguous()
        out = x.new_zeros(len(x), len(weight))
        runs = len(weight) // width
        self.call("rows", x, weight, union, out, size, runs, width)
        return out

    def columns(self, h, weight, union, size):
        """Return the sum over the chosen experts. [rows, neurons] -> [rows, outputs]"""
        h = h.contiguous()
        out = h.new_empty(len(h), weight.shape[1])
        self.call("columns", h, weight, union, out, size, 1, len(weight))
        return out

    def call(self, name, x, weight, union, out, size, runs, width):
        if weight.dtype != x.dtype:
            raise RuntimeError(f"inputs of {x.dtype} and weights of {weight.dtype}; expected one type")
        function = getattr(self.library, f"{name}_{SUFFIX[x.dtype]}")
        pointers = [ctypes.c_void_p(one.data_ptr()) for one in (x, weight, union, out)]
        numbers = [len(union), size, runs, width, weight.shape[1], len(x), torch.get_num_threads()]
        function(*pointers, *map(ctypes.c_int64, numbers))


SOURCE = """
#include <cstdint>
#include <cstring>
#include <algorithm>
#include <vector>

static const int64_t GROUP = 4;  // neurons that share each read of the input, or of the sums

static inline float read(float value) { return value; }
static inline float read(uint16_t value) {
    uint32_t bits = uint32_t(value) << 16; float out; std::memcpy(&out, &bits, 4); return out;
}
static inline void write(float& place, float value) { place = value; }
static inline void write(uint16_t& place, float value) {
    uint32_t bits; std::memcpy(&bits, &value, 4);
    place = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename T>
static void rows(const T* x, const T* weight, const int64_t* experts, T* out, int64_t chosen, int64_t size,
                 int64_t runs, int64_t width, int64_t inputs, int64_t count, int64_t threads) {
    const int64_t outputs = runs * width;
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t place = 0; place < chosen * runs; place++) {
        const int64_t first = place % runs * width + experts[place / runs] * size;
        for (int64_t row = first; row < first + size; row += GROUP) {
            const int64_t group = std::min<int64_t>(GROUP, first + size - row);
            for (int64_t one = 0; one < count; one++) {
                const T* from = x + one * inputs;
                const T* own[GROUP];
                for (int64_t j = 0; j < GROUP; j++) own[j] = weight + (row + std::min(j, group - 1)) * inputs;
                float a = 0, b = 0, c = 0, d = 0;
                #pragma omp simd reduction(+:a,b,c,d)
                for (int64_t i = 0; i < inputs; i++) {
                    const float value = read(from[i]);
                    a += read(own[0][i]) * value; b += read(own[1][i]) * value;
                    c += read(own[2][i]) * value; d += read(own[3][i]) * value;
                }
                const float sums[GROUP] = {a, b, c, d};
                for (int64_t j = 0; j < group; j++) write(out[one * outputs + row + j], sums[j]);
            }
        }
    }
}

template <typename T>
static void columns(const T* h, const T* weight, const int64_t* experts, T* out, int64_t chosen, int64_t size,
                    int64_t, int64_t width, int64_t outputs, int64_t count, int64_t threads) {
    const int64_t chunk = std::min<int64_t>(4096, (outputs + threads - 1) / threads);
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t start = 0; start < outputs; start += chunk) {
        const int64_t length = std::min(chunk, outputs - start);
        std::vector<float> sums(count * length, 0.0f);
        for (int64_t place = 0; place < chosen; place++) {
            const int64_t first = experts[place] * size;
            for (int64_t neuron = first; neuron < first + size; neuron += GROUP) {
                const int64_t group = std::min<int64_t>(GROUP, first + size - neuron);
                const T* own[GROUP];
                for (int64_t j = 0; j < GROUP; j++)
                    own[j] = weight + (neuron + std::min(j, group - 1)) * outputs + start;
                for (int64_t one = 0; one < count; one++) {
                    float by[GROUP];
                    for (int64_t j = 0; j < GROUP; j++)
                        by[j] = j < group ? read(h[one * width + neuron + j]) : 0;
                    float* sum = sums.data() + one * length;
                    #pragma omp simd
                    for (int64_t i = 0; i < length; i++)
                        sum[i] += by[0] * read(own[0][i]) + by[1] * read(own[1][i])
                                + by[2] * read(own[2][i]) + by[3] * read(own[3][i]);
                }
            }
        }
        for (int64_t one = 0; one < count; one++)
            for (int64_t i = 0; i < length; i++)
                write(out[one * outputs + start + i], sums[one * length + i]);
    }
}

#define EXPORT(name, suffix, T) \\
    extern "C" void name##_##suffix(const void* a, const void* b, const void* c, void* d, int64_t e, \\
                                    int64_t f, int64_t g, int64_t h, int64_t i, int64_t j, int64_t k) { \\
        name<T>((const T*)a, (const T*)b, (const int64_t*)c, (T*)d, e, f, g, h, i, j, k); }
EXPORT(rows, f32, float)
EXPORT(rows, bf16, uint16_t)
EXPORT(columns, f32, float)
EXPORT(columns, bf16, uint16_t)
"""
"""C++ without the headers of torch: it compiles in a second, not in a minute, and needs no ninja."""

FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17")


@cache
def compiled():
    """Return the compiled kernels; None, and a line on stderr, if they cannot be built here."""
    name = hashlib.sha256("".join((SOURCE, *FLAGS, processor())).encode()).hexdigest()[:12]
    try:
        from torch.utils import cpp_extension  # it needs setuptools, which an installed torch may lack

        root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
        library = Path(root) / f"routed_{name}.so"
        if not library.exists():
            compile_kernels(library, cpp_extension.get_cxx_compiler())
        return CompiledKernels(ctypes.CDLL(str(library)))
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or error
        reason = (str(told).strip().splitlines() or [type(error).__name__])[-1]
        print(f"routed MLPs run in PyTorch, not in C++: {reason[:200]}", file=sys.stderr)
        return None


def processor():
    """Return what this machine's processor can do: nodes of a cluster may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return "".join(sorted(told)) or platform.processor() + torch.backends.cpu.get_cpu_capability()


def compile_kernels(library, compiler):
    """Compile the kernels. Two processes may do so at once: the file appears complete."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        source, made = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        source.write_text(SOURCE)
        command = [compiler, *FLAGS, str(source), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(made, library)

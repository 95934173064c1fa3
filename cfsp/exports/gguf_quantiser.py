"""GGUF quantiser: llama.cpp's own, which makes the types that gguf-py cannot."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

PROGRAM, LIBRARY = "llama-quantize", "llama_cpp"
OWN_TYPES = re.compile(r"i?q\d_(k|k_\w+|\d|nl|xs|xxs|s|m)")
"""Types that only llama.cpp makes, but for q8_0."""


def find_quantiser() -> Callable[[Path, Path, str], None] | None:
    """Return what makes a file (from, to, type), or None if neither the program nor the library is there."""
    if shutil.which(PROGRAM) is not None:
        return by_program
    return by_library if importlib.util.find_spec(LIBRARY) is not None else None


def by_program(source: Path, target: Path, kind: str) -> None:
    """Quantise a file with the program. Raises ValueError if it fails."""
    command = [PROGRAM, str(source), str(target), kind.upper()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not target.is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise ValueError(f"type={kind!r}: {PROGRAM} ended with code {done.returncode}; its last line: {said}")


def by_library(source: Path, target: Path, kind: str) -> None:
    """Quantise a file with llama-cpp-python. Raises ValueError if it has no such type, or fails."""
    library = importlib.import_module(LIBRARY)
    number = getattr(library, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}", None)
    if number is None:
        raise ValueError(f"type={kind!r}: {LIBRARY} has no such type; expected one such as q4_k_m")
    options = library.llama_model_quantize_default_params()
    options.ftype = number
    code = library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if code or not target.is_file():
        raise ValueError(f"type={kind!r}: llama_model_quantize of {LIBRARY} ended with code {code}")

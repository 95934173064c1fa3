"""Paths on pages: short, distinct, never absolute."""

import pytest

from cfsp.report.paths import hide_paths, model_names, short_paths, without_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cfsp model.path=/a/b/c results='/r'", "cfsp model.path=…/c results='…/r'"),
        (
            "no file in /tmp/x/bad.); try https://host/a/b or a/b",
            "no file in …/bad.); try https://host/a/b or a/b",
        ),
        ("files:/a/b.txt, [/a/c.txt,/a/d.txt]", "files:…/b.txt, […/c.txt,…/d.txt]"),
        ("file:///home/jo/a.txt", "…/a.txt"),
        ("flap / uniform, 3 /s", "flap / uniform, 3 /s"),
    ],
)
def test_absolute_paths_are_cut_and_nothing_else_is(text, shown):
    assert hide_paths(text) == shown


def test_whole_configs_are_cut():
    config = {"path": "/home/Jo Doe/x", "list": ["/a/b", 3, None], "deep": {"rest": "data/x"}}
    shown = {"path": "…/x", "list": ["…/b", 3, None], "deep": {"rest": "data/x"}}
    assert without_paths(config) == shown


def test_models_are_named_by_what_tells_them_apart():
    hub = "/home/jo/.cache/models--meta-llama--Llama-2-7b-hf/snapshots/" + "0a" * 20
    paths = ["data/stories260K/hf", "meta-llama/Llama-3", hub, "a/x/tiny", "b/x/tiny", "reference"]
    names = ["stories260K", "Llama-3", "Llama-2-7b-hf", "a/x/tiny", "b/x/tiny", "reference"]
    assert [*model_names(paths).values()] == names


def test_equal_ends_have_as_many_parts_as_it_takes():
    found = ["/x", "/a/x", "/a/b/x", "hf", "/hf"]
    named = short_paths(found)
    assert named["/a/x"] == "a/x"
    assert named["/a/b/x"] == "b/x"
    assert not any(name.startswith("/") for name in named.values())

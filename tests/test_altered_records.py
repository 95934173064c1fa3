"""Records that were altered: the bad one is named in one line, and the others are shown."""

import copy
import json
import os
import re
from random import Random

import pytest
import studies
from studies import latency, record, training, zero_shot

from cfsp.cli import report, tables
from cfsp.records.record import Record

VALUES = (None, [], {}, "", -1, 1e999, [1, "a"], "text", True, 10**400)


def places(data, place=()):
    """The way to every leaf and subtree."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from places(value, (*place, key))


def altered(data, place, value):
    """A copy with one value replaced."""
    data = copy.deepcopy(data)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    data.pop("sha256", None)  # as older records: what remains to be checked is the content
    return json.dumps(data)


@pytest.fixture
def whole(tmp_path):
    """A record of everything that a record can hold, and another one beside it."""
    record("Taylor", **zero_shot(0.6)).save(tmp_path)
    more = {**zero_shot(0.7), **latency(0.5)}
    return record("FLAP", options={"fill": [1, None]}, training=training(1.0), **more).save(tmp_path)


@pytest.fixture
def good(tmp_path):
    """A record beside which bad ones are put."""
    return record("FLAP").save(tmp_path)


def variants(path):
    data = json.loads(path.read_text())
    return [altered(data, place, value) for place in places(data) for value in VALUES]


def refusal(path, text):
    """Why a text is no record; None if it is one."""
    path.write_text(text)
    try:
        Record.load(path)
    except ValueError as error:
        return str(error)
    return None


def ends(main, *arguments):
    """The exit code of a program; anything but an end is raised."""
    try:
        main([*map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.slow
def test_no_value_of_any_place_ends_in_a_traceback(whole, tmp_path, capsys):
    good, texts = whole, variants(whole)
    refusals = {text: refusal(good.with_name("zzz.json"), text) for text in texts}
    for line in filter(None, refusals.values()):
        assert re.fullmatch(r".*zzz\.json: no record of this version of cfsp \([^\n]{5,300}\)", line)
    fine = [text for text, line in refusals.items() if line is None]
    assert 800 < len(fine) < len(texts) / 2
    few = Random(0).sample(fine, 8)  # all of them take minutes
    for text in few:
        good.with_name("zzz.json").write_text(text)
        assert ends(tables.main, good.parent, "--metric", "perplexity,acc/piqa", "--average") in (0, 1)
    good.with_name("zzz.json").unlink()
    for number, text in enumerate(few):
        data = json.loads(text)
        named = {**data, "id": f"{data['id']}{number}"}  # else all but one are left out
        good.with_name(f"{number}.json").write_text(json.dumps(named))
    assert ends(report.main, good.parent, "-o", tmp_path / "a.html") == 0


BROKEN = {
    "a folder": lambda path: path.mkdir(),
    "No such file": lambda path: path.symlink_to("nowhere"),
    "an empty file": lambda path: path.touch(),
    "nested too deep": lambda path: path.write_text("[" * 100_000),
    "nested too deep;": lambda path: path.write_text("[" * 500 + "]" * 500),
    "not UTF-8": lambda path: path.write_bytes(bytes(range(128, 256))),
    "no JSON": lambda path: path.write_text('{"id": '),
    "expected an object": lambda path: path.write_text("[]"),
    "id is missing": lambda path: path.write_text("{}"),
    "half of a surrogate pair": lambda path: path.write_text('{"id": "\\ud800"}'),
}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_file_is_named_and_the_others_are_shown(good, tmp_path, capsys, kind):
    path = good.with_name("zzz.json")
    BROKEN[kind](path)
    page = tmp_path / "a.html"
    for main, shown in ((tables.main, "-"), (report.main, page)):
        assert ends(main, good.parent, *([] if shown == "-" else ["-o", shown])) == 1
        out, err = capsys.readouterr()
        assert "flap" in (out if shown == "-" else page.read_text())
        assert err.count("\n") == 1
        assert "zzz.json" in err
        assert kind in err


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("config",), None, "config: null; expected an object"),
        (("config", "sparsity"), 1, "config.sparsity: 1; expected a share to remove, in [0, 1)"),
        (("config", "recovery", "_target_"), None, "config.recovery._target_: null; expected a text"),
        (("config", "allocator", "more"), {"_target_": 1}, "expected a text as every _target_"),
        (
            ("widths", "model.layers.0.mlp"),
            [0, 0],
            "widths.model.layers.0.mlp: [0, 0]; expected [units, kept]",
        ),
        (("metrics", "dense", "acc/piqa"), None, "metrics.dense.acc/piqa: null; expected an object"),
        (("metrics", "dense"), {}, "expected a dense counterpart of each pruned metric"),
        (("metrics", "pruned", "acc/piqa", "better"), "max", 'better: "max"; expected lower or higher'),
        (
            ("parameters", "dense", "model"),
            0,
            "parameters.dense.model: 0; expected a whole number of at least 1",
        ),
        (("seconds", "plan"), 1e999, "seconds.plan: Infinity; expected a finite number"),
        (("colour",), 1, "colour: an unknown field"),
    ],
)
def test_what_is_wrong_is_said(whole, place, value, message):
    whole.write_text(altered(json.loads(whole.read_text()), place, value))
    with pytest.raises(ValueError, match=re.escape(message)):
        Record.load(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_may_be_no_number(tmp_path, value):
    one = studies.record()
    one.metrics["pruned"]["perplexity/x"] = studies.metric(value, studies.PERPLEXITY)
    assert repr(Record.load(one.save(tmp_path))) == repr(one)


def test_a_file_that_may_not_be_read_is_no_broken_record(good, monkeypatch):
    """A disk's fault is told as such: nobody may take the record for none and make it anew."""

    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    with pytest.raises(PermissionError, match=os.fspath(good)):
        Record.load(good)

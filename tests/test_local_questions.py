"""Local files of questions: their names are shown, their hashes tell protocols apart."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tabled
from harness_rows import evaluator, write_rows

from cfsp.checkpoints.load import load
from cfsp.evaluation.generation import Generation
from cfsp.records.protocols import comparable, difference_words, differing, in_words
from cfsp.report.groups import zero_shots
from cfsp.report.quality import chips
from cfsp.tables.compare import comparisons
from cfsp.tables.formats import render
from cfsp.tables.frame import frame

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments" / "league"))
import league

OLD = {"measure": "zero_shot", "files_sha256": {"piqa:": "a" * 16}, "shots": 0, "papers": True}
NEW = OLD | {"questions": "files:mine.jsonl"}
OTHER = OLD | {"files_sha256": {"piqa:": "b" * 16}, "questions": "files:yours.jsonl"}


def made(protocol, seed=0, **config):
    one = tabled.record("m", 0.2, 0.5, seed=seed, better="higher", name="acc/piqa", **config)
    metrics = {
        side: {"acc/piqa": replace(found["acc/piqa"], protocol=protocol)}
        for side, found in one.metrics.items()
    }
    return replace(one, metrics=metrics)


def test_the_protocol_holds_the_names_without_folders(tiny_checkpoint, tmp_path):
    file = partial(write_rows, tmp_path)
    model, tokenizer = load(tiny_checkpoint)
    path = file("piqa")
    protocol = evaluator(["piqa"], files={"piqa": str(path)}).protocol(model, tokenizer)
    assert protocol["questions"] == f"files:{path.name}"
    rows = {split: tmp_path / f"gsm8k.{split}.jsonl" for split in ("test", "train")}
    for split, one in rows.items():
        one.write_text(json.dumps({"question": f"two cats {split}", "answer": "#### 2"}))
    files = {"gsm8k": {split: str(one) for split, one in rows.items()}}
    written = Generation(["gsm8k"], 0, None, 1, files, chat=False, new_tokens=3).protocol(model, tokenizer)
    assert written["questions"] == "files:gsm8k.test.jsonl,gsm8k.train.jsonl"
    assert str(tmp_path) not in json.dumps([protocol, written])


def test_only_the_hash_tells_protocols_apart():
    renamed = NEW | {"questions": "files:renamed.jsonl"}
    for one in (OLD, renamed):
        assert differing([one, NEW]) == ()
        assert difference_words([one, NEW]) == ""
        assert comparable(one) == comparable(NEW)
    assert difference_words([NEW, OTHER | {"shots": 5}]) == (
        "the protocols differ in shots; the questions come from different files "
        "(files:mine.jsonl or files:yours.jsonl)"
    )
    assert difference_words([OLD, {**OLD, "files_sha256": {}}]) == "the questions come from different files"


@pytest.mark.parametrize(
    "key", ["text_sha256", "tokens_sha256", "tokenizer_sha256", "template_sha256", "files_sha256"]
)
def test_no_hash_is_called_by_its_key(key):
    one, other = {key: "a" * 16}, {key: "b" * 16}
    for words in (difference_words([one, other]), in_words(one, key)):
        assert words
        assert "sha256" not in words
        assert "a" * 9 not in words


def test_tables_show_the_names(tmp_path):
    records = [made(OLD), made(NEW, seed=1), made(OTHER, seed=2)]
    mine, yours = comparisons(frame(records), "acc/piqa", "method")
    assert "questions files:mine.jsonl (aaaaaaaa)" in mine.caption
    assert "questions files:yours.jsonl (bbbbbbbb)" in yours.caption
    told = render([mine], "markdown")
    assert "2 runs" in told
    assert "questions files:mine.jsonl." in told.replace("\\", "")
    with pytest.raises(ValueError, match="mix 2 protocols: the questions come from different files"):
        comparisons(frame(records), "acc/piqa", "method", strict=True)


def test_the_report_shows_the_names():
    measure, _ = zero_shots([made(OLD), made(NEW, seed=1), made(OTHER, seed=2)])
    assert len(measure.records) == 2
    assert chips(measure)["questions"] == "mine.jsonl"
    assert chips(measure)["files_sha256"] == "aaaaaaaa"


def test_the_league_shows_the_names():
    text = league.page([made(OLD), made(NEW, seed=1), made(OTHER, seed=2)], {}).replace("\\", "")
    assert text.count("\n## m, ") == 2
    assert "2 runs. Protocol: papers True, shots 0, questions files:mine.jsonl." in text
    assert "1 run. Protocol: papers True, shots 0, questions files:yours.jsonl." in text

"""Texts: what is read, and what is said of files that cannot be."""

import json

import pandas as pd
import pytest

from cfsp.data.stdlib import split_of, stdlib_modules
from cfsp.data.texts import Files, Hub, Stdlib


def test_stdlib_splits_are_disjoint_and_not_empty():
    documents = {split: Stdlib(split).documents() for split in ("calibration", "test")}
    assert not set(documents["calibration"]) & set(documents["test"])
    assert all(sum(map(len, found)) > 100_000 for found in documents.values())
    shares = [split_of(name) for name, _ in stdlib_modules()]
    assert 0.7 < shares.count("train") / len(shares) < 0.9


def test_split_of_a_name_never_changes():
    names = ("json", "bisect", "doctest", "pydoc_data.topics")
    assert [split_of(name) for name in names] == ["train", "calibration", "test", "train"]


def test_documentation_holds_signatures_and_docstrings():
    text = Stdlib("test").joined()
    assert "doctest\n=======" in text
    assert "doctest.run_docstring_examples(f, globs, verbose=False, name='NoName'" in text


def test_files_of_every_kind(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n\n{"text": "three"}\n')
    pd.DataFrame({"text": ["four"]}).to_parquet(tmp_path / "c.parquet")
    assert Files([f"{tmp_path}/*"]).documents() == ["one", "two", "three", "four"]
    assert Files(f"{tmp_path}/a.txt").joined() == "one"
    assert Files([f"{tmp_path}/b.jsonl", f"{tmp_path}/a.txt"]).label == "files:b.jsonl,a.txt"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", r"a\.txt, line 1: UTF-16, not UTF-8 text; re-encode it"),
        ("a.txt", b" \n", r"text 'files:a\.txt' is empty"),
        ("a.jsonl", b'{"text": "x"}\n{"te', r"a\.jsonl, line 2: expected a JSON object on every line"),
        ("a.jsonl", b'{"words": "x"}', r"a\.jsonl, line 1: expected .* key 'text'"),
        ("a.jsonl", b'["text"]', r"a\.jsonl, line 1: expected .* key 'text'"),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl, line 1: 'text' is int; expected text in every row"),
        ("a.parquet", b"PAR0", r"a\.parquet: not a whole Parquet file"),
        ("a.pdf", b"x", r"a\.pdf: expected one of \.txt, .*\.jsonl, .*\.parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Files(str(tmp_path / name)).joined()


def test_missing_file_and_missing_column(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file matches 'nowhere/\*\.txt'"):
        Files("nowhere/*.txt").documents()
    pd.DataFrame({"words": ["x"]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"no column 'text'; it has \['words'\]"):
        Files(f"{tmp_path}/c.parquet").documents()


def test_unicode_line_separators_do_not_end_a_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one\u2028two\u0085three"}\n', encoding="utf-8")
    assert Files(f"{tmp_path}/a.jsonl").documents() == ["one\u2028two\u0085three"]


def test_rows_that_are_no_text(tmp_path):
    pd.DataFrame({"text": ["x", None]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet, row 1: 'text' is null; expected text"):
        Files(f"{tmp_path}/c.parquet").documents()


def test_hub_text_from_a_local_copy(tmp_path):
    rows = [{"text": f"row {number}"} for number in range(5)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = Hub("mine", str(tmp_path), None, "train", rows=3)
    assert (text.label, text.documents()) == ("mine:train", ["row 0", "row 1", "row 2"])
    with pytest.raises(ValueError, match="no column 'words'"):
        Hub("mine", str(tmp_path), None, "train", column="words").documents()


def test_hub_text_of_own_files_is_read_again_once_they_changed(tmp_path):
    file = tmp_path / "rows.jsonl"
    for name in (str(file), str(tmp_path / "*.jsonl")):
        text = Hub("mine", "json", None, "train", data_files=name)
        for words in ("one", "two and three"):
            file.write_text(json.dumps({"text": words}) + "\n")
            assert text.documents() == [words]


def test_hub_text_that_cannot_be_reached():
    with pytest.raises(ValueError, match="'no/such-data' cannot be read .* check the name and the network"):
        Hub("none", "no/such-data", None, "train").documents()


def test_bad_options():
    with pytest.raises(ValueError, match="split='dev': expected one of train, calibration, test"):
        Stdlib("dev")

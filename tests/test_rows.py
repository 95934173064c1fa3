"""Rows: what is taken from files of every kind, and what is said of a row that cannot be."""

import gzip
import json
import os

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from cfsp.data import rows as module
from cfsp.data.instructions import Conversations
from cfsp.data.rows import ROWS, WHOLE, find_row_files, json_rows, read_bytes
from cfsp.data.texts import Files, Hub
from cfsp.evaluation.local_tasks import Questions

PAIR = {"prompt": "a", "response": "b"}
PIQA = {"goal": "g", "sol1": "a", "sol2": "b", "label": 0}
HALF = b"\\ud83d"


def documents(path, column="text"):
    return Files(str(path), column).documents()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("packed", [False, True], ids=["", "gz"])
def test_marks_line_ends_and_packing_change_no_text(tmp_path, mark, end, packed):
    contents = {
        "a.txt": b"one\ntwo",
        "a.MD": b"one\ntwo",
        "a.jsonl": b'{"text": "one\\ntwo"}\n',
        "a.json": b'[{"text":\n"one\\ntwo"}]',
        "lines.json": b'{"text": "one\\ntwo"}\n',
    }
    for name, data in contents.items():
        marked = mark + data.replace(b"\n", end)
        path = tmp_path / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(marked, mtime=0) if packed else marked)
        assert documents(path) == ["one\ntwo"], name


def test_a_mark_is_no_part_of_instructions_and_questions(tmp_path):
    for name, row in (("pairs.jsonl", PAIR), ("pairs.json", [PAIR]), ("piqa.jsonl", PIQA)):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode())
    for name in ("pairs.jsonl", "pairs.json"):
        assert Conversations("pairs", f"{tmp_path}/{name}").documents() == ["a b"]
    assert Questions("piqa", f"{tmp_path}/piqa.jsonl").documents() == ["g a b"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": "y' + HALF + b'"}', r"line 2: character 1 .* \\ud83d, half of"),
        ("a.json", b'[{"text": "' + HALF + b'"}]', r"row 0: character 0 .* half of a surrogate pair"),
        ("a.txt", b"good\nbad \xff", r"line 2: not UTF-8 text \(byte 9\); re-encode it"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}', r"line 2: not UTF-8"),
        ("a.txt", "text".encode("utf-16"), r"line 1: UTF-16, not UTF-8 text; re-encode it"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16-le"), r"line 1: a NUL byte; expected UTF-8 text"),
        ("a.txt.gz", gzip.compress(b"text" * 100, mtime=0)[:-9], r"not a whole \.gz file"),
        ("a.txt.gz", b"text", r"not a whole \.gz file"),
        ("a.jsonl", b"\n" + b"[" * 100_000, r"line 2: expected a JSON object on every line"),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", r"line 1: expected a JSON object on every line"),
        ("a.json", b'[{"text": "x"},\n{"te', r"line 2: not JSON"),
        ("a.jsonl", b'{"text": null}', r"line 1: 'text' is null; expected text"),
        ("a.jsonl", b'{"words": "x"}', r"line 1: expected .* key 'text'; it has 'words'"),
        ("a.jsonl", b'{"text": ["x"]}', r"line 1: expected messages that have a role and a content"),
        ("a.csv", b"text\nx", r"expected one of \.txt"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name.replace('.', '[.]')}[:,].*{message}"):
        Files(str(tmp_path / name)).joined()


def test_half_a_pair_is_named_in_instructions_and_questions(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(PAIR) + "\n" + json.dumps(PAIR | {"response": "\ud83d"}))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: .* half of a surrogate pair"):
        Conversations("pairs", f"{tmp_path}/a.jsonl").documents()
    (tmp_path / "b.jsonl").write_text(json.dumps(PIQA | {"sol2": "\ud83d"}))
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1: .* half of a surrogate pair"):
        Questions("piqa", f"{tmp_path}/b.jsonl").documents()


def test_bytes_of_parquet_that_are_no_text_are_named(tmp_path):
    offsets = pyarrow.array([0, 1, 2, 3], pyarrow.int32()).buffers()[1]
    column = pyarrow.StringArray.from_buffers(3, offsets, pyarrow.py_buffer(b"ab\xff"))
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 2: not UTF-8 text"):
        documents(tmp_path / "a.parquet")


def test_what_exists_is_itself_and_only_else_a_pattern(tmp_path):
    folder = tmp_path / "run[1]"
    folder.mkdir()
    (folder / "a[0].txt").write_text("there")
    (folder / "pairs.jsonl").write_text(json.dumps(PAIR))
    (folder / "piqa.jsonl").write_text(json.dumps(PIQA))
    assert documents(folder / "a[0].txt") == ["there"]
    assert documents(f"{tmp_path}/run[[]1]/*.txt") == ["there"]
    assert Conversations("pairs", [f"{folder}/pairs.jsonl"]).documents() == ["a b"]
    assert Questions("piqa", f"{folder}/piqa.jsonl").documents() == ["g a b"]


def test_a_folder_is_all_that_is_below_it_each_file_once(tmp_path):
    for name in ("b/c.txt", "a.md", "d.jsonl", ".cache/e.txt", "b/._c.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "row"}' if name == "d.jsonl" else name)
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "z.txt").symlink_to(tmp_path / "b" / "c.txt")
    assert documents(tmp_path) == ["a.md", "b/c.txt", "row"]
    assert sorted(documents(f"{tmp_path}/[bd]*")) == ["b/c.txt", "row"]
    assert [path.name for path in find_row_files([f"{tmp_path}/**/*.txt"], WHOLE)] == ["c.txt"]
    assert Files(f"{tmp_path}/b/").label == "files:b"
    with pytest.raises(ValueError, match=r"c\.txt: in two of the places .* expected each file once"):
        find_row_files([f"{tmp_path}/b/c.txt", f"{tmp_path}/b"], WHOLE)
    with pytest.raises(ValueError, match="no file in this folder ends in one of .jsonl"):
        find_row_files([f"{tmp_path}/b"], ROWS)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("one")
    stamps = iter([module.stamp(path), ("another",)])
    monkeypatch.setattr(module, "stamp", lambda _: next(stamps))
    with pytest.raises(ValueError, match="changed while it was read"):
        read_bytes(path)


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    text = Files(str(path))
    assert text.documents() == text.documents() == ["one"]
    path.write_text("another")
    os.utime(path, ns=(1, 1))
    assert text.documents() == ["another"]


def test_a_field_inside_a_field(tmp_path):
    nested = [{"meta": {"text": "one"}}, {"meta.text": "two"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, nested)))
    pd.DataFrame(nested[:1]).to_parquet(tmp_path / "b.parquet")
    pd.DataFrame(nested[1:]).to_parquet(tmp_path / "c.parquet")
    assert documents(tmp_path, "meta.text") == ["one", "two", "one", "two"]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: expected .* key 'meta\.words'; it has 'meta'"):
        documents(tmp_path / "a.jsonl", "meta.words")
    with pytest.raises(ValueError, match=r"no column 'data\.text'; it has \['meta'\]"):
        documents(tmp_path / "b.parquet", "data.text")


def test_a_data_set_has_fields_in_fields_and_is_read_again_once_it_has_changed(tmp_path):
    text = Hub("mine", str(tmp_path), None, "train", column="meta.text")
    for content in ("one", "another"):
        (tmp_path / "train.jsonl").write_text(json.dumps({"meta": {"text": content}}))
        assert text.documents() == text.documents() == [content]


def test_all_columns_of_parquet_are_rows_of_instructions(tmp_path):
    pd.DataFrame([PAIR]).to_parquet(tmp_path / "a.parquet")
    assert [row for _, row in json_rows(tmp_path / "a.parquet")] == [PAIR]
    assert Conversations("pairs", f"{tmp_path}/a.parquet").documents() == ["a b"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_chats_take_the_template_where_there_is_one(tmp_path, tokenizer, suffix):
    messages = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_text(json.dumps({"messages": messages}))
    else:
        pd.DataFrame({"messages": [messages]}).to_parquet(path)
    text = Files(str(path), "messages")
    assert text.documents() == text.written(tokenizer) == ["ask\n\nanswer"]
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    try:
        assert text.joined(tokenizer) == "<user>ask<assistant>answer"
        assert text.joined() == "ask\n\nanswer"
        tokenizer.chat_template = "{{ raise_exception('no system') }}"
        with pytest.raises(ValueError, match=rf"a\.{suffix}, .* the chat template rejects it \(no system\)"):
            text.joined(tokenizer)
    finally:
        tokenizer.chat_template = None


@pytest.mark.parametrize("paths", [[], "", [""], 3, None, {"a": 1}])
def test_paths_that_name_nothing(paths):
    with pytest.raises(
        ValueError, match=r"^paths=.*: expected (names of files or folders, or globs|a list of)"
    ):
        Files(paths)

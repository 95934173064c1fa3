"""Examples: which tokens recovery trains on, and which of them count."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from cfsp.checkpoints.load import REFERENCE
from cfsp.data.examples import IGNORED, Examples
from cfsp.data.instructions import WITH_INPUT, Conversations
from cfsp.data.paragraphs import Paragraphs
from cfsp.data.sources import Instructions, Prose
from cfsp.data.texts import Files
from cfsp.data.windows import fingerprint_examples

ALPACA = [
    {"instruction": "Add one.", "input": "41", "output": "42"},
    {"instruction": "Say hello.", "output": "Hello there."},
]
CHAT = [
    {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello to you"},
            {"role": "user", "content": "bye"},
            {"role": "assistant", "content": "farewell"},
        ]
    }
]
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(REFERENCE)


@pytest.fixture
def file(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(lines))
        return str(path)

    return write


def examples(sources, **options):
    defaults = {"weights": None, "window": 32, "packing": False, "held_out": 0, "seed": 0}
    return Examples(sources=sources, **{**defaults, **options})


def counted(example):
    pairs = zip(example["input_ids"], example["labels"], strict=True)
    return [token for token, label in pairs if label != IGNORED]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_alpaca_counts_the_answer_and_the_end(file, tokenizer, name):
    source = Instructions(Conversations(form="alpaca", paths=file(ALPACA, name)))
    first, second = source.passages(tokenizer)
    assert tokenizer.decode(counted(first)) == "42" + tokenizer.eos_token
    assert tokenizer.decode(counted(second)) == "Hello there." + tokenizer.eos_token
    prompt = WITH_INPUT.format(instruction="Add one.", input="41")
    assert tokenizer.decode(first["input_ids"]).startswith(prompt + "42")
    everything = Instructions(Conversations(form="alpaca", paths=file(ALPACA)), answers_only=False)
    assert all(passage["labels"] == passage["input_ids"] for passage in everything.passages(tokenizer))


def test_pairs(file, tokenizer):
    rows = [{"prompt": "one plus one is", "response": " two"}]
    (passage,) = Instructions(Conversations(form="pairs", paths=file(rows))).passages(tokenizer)
    assert tokenizer.decode(counted(passage)) == " two" + tokenizer.eos_token


def test_chat_counts_what_the_assistant_says(file, tokenizer):
    tokenizer.chat_template = TEMPLATE
    ((text, answers),) = Conversations(form="chat", paths=file(CHAT)).rendered(tokenizer)
    assert [text[first:last] for first, last in answers] == ["hello to you</s>", "farewell</s>"]


def test_documents_of_few_tokens_are_skipped(file, tokenizer):
    text = Files(file([{"text": one} for one in ("a b c d e f g h", "a b", "one two three four five six")]))
    everything = [passage["input_ids"] for passage in Prose(text).passages(tokenizer)]
    least = min(len(everything[0]), len(everything[2])) - 1  # without EOS
    kept = [passage["input_ids"] for passage in Prose(text, min_tokens=least).passages(tokenizer)]
    assert kept == [everything[0], everything[2]]
    with pytest.raises(ValueError, match=r"no document of min_tokens=999 or more; expected a smaller"):
        [*Prose(text, min_tokens=999).passages(tokenizer)]
    with pytest.raises(ValueError, match="min_tokens=-1"):
        Prose(text, min_tokens=-1)


def test_paragraphs_end_at_empty_lines_and_rows_are_joined(file, tokenizer):
    text = Files(file([{"text": one} for one in ("a\nb\n\nc\r\n\r\nd", "e", "f\n \n", "g")]))
    assert Paragraphs(text).documents() == ["a\nb", "c", "d", "e", "f", "g"]
    assert Paragraphs(text, rows=3).documents() == ["a\nb", "c", "d e f", "g"]
    assert Paragraphs(text, rows=3).written(tokenizer) == Paragraphs(text, rows=3).documents()
    assert Paragraphs(text).label == text.label
    with pytest.raises(ValueError, match="rows=0"):
        Paragraphs(text, rows=0)


def test_packing_leaves_no_padding_and_loses_nothing_but_the_end(text_file, tokenizer):
    packed = examples({"text": Prose(Files(str(text_file)))}, packing=True)
    train, _ = packed.split(tokenizer)
    (passage,) = Prose(Files(str(text_file))).passages(tokenizer)
    assert {len(example["input_ids"]) for example in train} == {32}
    assert len(train) == len(passage["input_ids"]) // 32
    joined = sorted(token for example in train for token in example["input_ids"])
    assert joined == sorted(passage["input_ids"][: len(train) * 32])


def test_held_out_examples_are_never_trained_on(tmp_path, tokenizer):
    (tmp_path / "numbers.txt").write_text(" ".join(map(str, range(1000))))
    data = examples({"text": Prose(Files(str(tmp_path / "numbers.txt")))}, packing=True, held_out=5)
    train, held_out = data.split(tokenizer)
    assert len(held_out) == 5
    assert not {str(example) for example in train} & {str(example) for example in held_out}
    assert tuple(data.split(tokenizer)) == (train, held_out)


def test_a_limit_takes_the_first_of_the_same_examples(tmp_path, tokenizer):
    (tmp_path / "numbers.txt").write_text(" ".join(map(str, range(1000))))
    source = {"text": Prose(Files(str(tmp_path / "numbers.txt")))}
    whole, held_out = examples(source, packing=True, held_out=3).split(tokenizer)
    limited = examples(source, packing=True, held_out=3, limit=2).split(tokenizer)
    assert tuple(limited) == (whole[:2], held_out)


def test_a_mixture_has_the_weights_asked_for(file, tokenizer):
    def source(word, number):
        rows = [{"prompt": f"{word} {index}", "response": word} for index in range(number)]
        return Instructions(Conversations(form="pairs", paths=file(rows, f"{word}.jsonl")))

    sources = {"a": source("alpha", 40), "b": source("beta", 400)}
    train, _ = examples(sources, weights={"a": 1, "b": 3}).split(tokenizer)
    texts = [tokenizer.decode(example["input_ids"]) for example in train]
    assert sum(text.startswith("alpha") for text in texts) == 40
    assert sum(text.startswith("beta") for text in texts) == 120
    assert len(set(texts)) == len(texts)
    assert texts != sorted(texts)


def test_batches_are_padded_on_the_right(file, tokenizer):
    data = examples({"a": Instructions(Conversations(form="alpaca", paths=file(ALPACA)))}, window=128)
    train, _ = data.split(tokenizer)
    batch = data.collator(tokenizer)(train)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    for row, example in enumerate(train):
        size = len(example["input_ids"])
        assert batch["input_ids"][row, :size].tolist() == example["input_ids"]
        assert batch["attention_mask"][row].sum() == size
        assert (batch["labels"][row, size:] == IGNORED).all()
    assert torch.is_tensor(batch["labels"])


@pytest.mark.parametrize(
    ("rows", "form", "message"),
    [
        (['{"instruction": "a", "output": "b"}', '{"instr'], "alpaca", r"rows\.jsonl, line 2"),
        ([{"instruction": "a"}], "alpaca", r"line 1: expected a JSON object with the key 'output'"),
        ([{"prompt": "a", "response": 3}], "pairs", r"line 1: not of form 'pairs'"),
        (CHAT, "chat", "no chat template"),
        (["3"], "pairs", "line 1: expected a JSON object"),
    ],
)
def test_bad_rows_say_where(rows, form, message, file, tokenizer):
    source = Instructions(Conversations(form=form, paths=file(rows)))
    with pytest.raises(ValueError, match=message):
        examples({"a": source}).split(tokenizer)


def test_a_pad_token_is_asked_for(file, tokenizer):
    tokenizer.pad_token = None
    source = {"a": Instructions(Conversations(form="alpaca", paths=file(ALPACA)))}
    with pytest.raises(ValueError, match=r"no pad token; expected data.pad_token=.* or .*packing"):
        examples(source).split(tokenizer)
    assert examples(source, pad_token=tokenizer.eos_token, window=128).split(tokenizer).train


def test_what_is_cut_off_before_the_answer_is_left_out(file, tokenizer):
    source = {"a": Instructions(Conversations(form="alpaca", paths=file(ALPACA)))}
    with pytest.raises(ValueError, match="no example of window=8"):
        examples(source, window=8).split(tokenizer)


def test_either_files_or_the_hub():
    with pytest.raises(ValueError, match="either paths or hub"):
        Conversations(form="alpaca")


def test_what_does_not_fit_is_counted_and_told(file, tokenizer, capsys):
    rows = [
        {"prompt": "one two three", "response": " four"},
        {"prompt": "one two three", "response": " four five six seven eight nine ten" * 9},
        {"prompt": "one two three four five six seven eight nine ten" * 9, "response": " eleven"},
    ]
    split = examples({"a": Instructions(Conversations(form="pairs", paths=file(rows)))}).split(tokenizer)
    assert len(split.train) == 2
    assert split.lost == {"a": {"passages": 3, "dropped": 1, "cut": 1}}
    assert "of 3 passages 1 have nothing that counts within window=32" in capsys.readouterr().err


def test_a_weight_of_less_than_one_example_is_refused(file, tokenizer):
    def source(word, number):
        rows = [{"prompt": f"{word} {index}", "response": word} for index in range(number)]
        return Instructions(Conversations(form="pairs", paths=file(rows, f"{word}.jsonl")))

    sources = {"a": source("alpha", 40), "b": source("beta", 40)}
    with pytest.raises(ValueError, match=r"weight of b=0.001: that gives none of 40 examples"):
        examples(sources, weights={"a": 1, "b": 0.001}).split(tokenizer)
    assert len(examples(sources, weights={"a": 1, "b": 0}).split(tokenizer).train) == 40


def test_examples_are_named_by_what_is_in_them():
    one, other = {"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [1, 2], "labels": [IGNORED, 2]}
    parts = [([one], [other]), ([one, other], []), ([one], [one]), ([], [one, other])]
    assert len({fingerprint_examples(part) for part in parts}) == 4
    assert fingerprint_examples(([dict(one)], [other])) == fingerprint_examples(parts[0])

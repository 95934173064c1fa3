"""Self-written calibration: what the model says, what of it counts, and that it is written once."""

import json

import pytest
import torch
from families import make, words
from two_stacks import make_pair

from cfsp.checkpoints.card import made_by
from cfsp.data.instructions import Conversations
from cfsp.data.overlaps import overlaps
from cfsp.data.readings import kept_in
from cfsp.data.texts import Files
from cfsp.records.record import Record
from cfsp.statistics import self_written
from cfsp.statistics.self_written import SelfWritten
from cfsp.storage.cache import Cache

TEMPLATE = (
    "{% for turn in messages %}[{{ turn['role'] }}] {{ turn['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}[answer]{% endif %}"
)


@pytest.fixture
def tiny(tiny):
    tiny.config.max_position_embeddings = 256
    return tiny


@pytest.fixture
def passages(text_file):
    return Files(str(text_file))


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"instruction": f"count {n} cats", "input": "a mat " * n, "output": f"secret {n}"} for n in range(9)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return Conversations("alpaca", str(path))


def calibration(text, **changes):
    options = {"samples": 5, "seqlen": 20, "prompt_tokens": 8, "batch_size": 2, "seed": 0}
    return SelfWritten(text, **options | changes)


def rows_of(batches):
    """Prompt and answer of every sample, without padding."""
    found = []
    for batch in batches:
        tensors = (batch[name] for name in ("input_ids", "attention_mask", "counted"))
        for ids, mask, counted in zip(*tensors, strict=True):
            first = int(counted.argmax())
            last = int(mask.sum())
            assert counted.tolist() == [0] * first + [1] * (last - first) + [0] * (len(ids) - last)
            found.append((ids[:first].tolist(), ids[first:last].tolist()))
    return found


def alone(model, tokenizer, prompt, count):
    """What transformers generates greedily after one prompt without padding."""
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_answers_are_those_of_each_prompt_alone(tiny, tokenizer, questions):
    """Prompts of different lengths are padded on the left, which changes nothing."""
    found = rows_of(
        calibration(questions, seqlen=128, prompt_tokens=120, temperature=0.0).batches(tokenizer, tiny)
    )
    assert len({len(prompt) for prompt, _ in found}) > 1
    for prompt, answer in found:
        assert answer == alone(tiny, tokenizer, prompt, 8)


def test_the_same_seed_gives_the_same_text_whatever_the_batch_size(tiny, tokenizer, passages):
    before = torch.random.get_rng_state()
    first = rows_of(calibration(passages).batches(tokenizer, tiny))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == rows_of(calibration(passages).batches(tokenizer, tiny))
    assert first == rows_of(calibration(passages, batch_size=5).batches(tokenizer, tiny))
    other = rows_of(calibration(passages, seed=1).batches(tokenizer, tiny))
    assert all(one != another for one, another in zip(first, other, strict=True))


def test_sampling_follows_the_distribution_of_the_model(tiny, tokenizer):
    prompt, temperature = [5, 6, 7], 0.5
    with torch.no_grad():
        wanted = (tiny(input_ids=torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    dice = self_written.Dice(range(2000), temperature)
    said = self_written.continued(tiny, tokenizer, [prompt] * 2000, 1, dice=dice)
    seen = torch.tensor([token for (token,) in said]).bincount(minlength=len(wanted)) / 2000
    assert (seen - wanted).abs().max() < 0.04
    assert (seen - wanted).abs().sum() < 1.2 * (wanted * (1 - wanted) / 2000).sqrt().sum()


def test_an_answer_ends_with_the_end_which_counts(tiny, tokenizer, passages):
    (_, answer), *_ = rows_of(calibration(passages, temperature=0.0).batches(tokenizer, tiny))
    tiny.generation_config.eos_token_id = answer[2]
    (_, ended), *_ = rows_of(calibration(passages, temperature=0.0).batches(tokenizer, tiny))
    assert ended == answer[: answer.index(answer[2]) + 1]


def test_the_chat_template_writes_the_prompt_and_no_answer_is_read(tiny, tokenizer, questions, monkeypatch):
    sample = {"seqlen": 128, "prompt_tokens": 120}
    plain = [
        tokenizer.decode(prompt)
        for prompt, _ in rows_of(calibration(questions, **sample).batches(tokenizer, tiny))
    ]
    assert all("### Instruction" in prompt and "secret" not in prompt for prompt in plain)
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    chats = [
        tokenizer.decode(prompt)
        for prompt, _ in rows_of(calibration(questions, **sample).batches(tokenizer, tiny))
    ]
    assert all(prompt.startswith("[user] count ") and prompt.endswith("[answer]") for prompt in chats)
    assert "secret" not in "".join(chats)
    off = rows_of(calibration(questions, chat=False, **sample).batches(tokenizer, tiny))
    assert all("### Instruction" in tokenizer.decode(prompt) for prompt, _ in off)


def test_other_forms_of_instructions_end_before_the_first_answer(tmp_path):
    path = tmp_path / "rows.json"
    said = [("system", "be brief"), ("user", "hi"), ("assistant", "secret"), ("user", "more")]
    messages = [{"role": role, "content": content} for role, content in said]
    path.write_text(json.dumps([{"messages": messages, "prompt": "say", "response": "secret"}]))
    assert Conversations("chat", str(path)).questions(True) == [messages[:2]]
    assert Conversations("pairs", str(path)).questions(True) == [[{"role": "user", "content": "say"}]]
    path.write_text(json.dumps([{"messages": messages[2:3]}]))
    with pytest.raises(ValueError, match="row 0: no message of a user before the first answer"):
        Conversations("chat", str(path)).questions(True)


def test_text_is_written_once_and_kept_as_lines_of_json(tiny, tokenizer, passages, tmp_path, monkeypatch):
    written, write = [], SelfWritten.write

    def spy(self, *given):
        written.append(given[-1])
        return write(self, *given)

    monkeypatch.setattr(SelfWritten, "write", spy)
    with kept_in(Cache(tmp_path)):
        first = calibration(passages).batches(tokenizer, tiny)
        assert written == [0, 2, 4]
        again = calibration(passages).batches(tokenizer, tiny)
        assert written == [0, 2, 4]
        assert rows_of(first) == rows_of(again)
        files = sorted(tmp_path.glob("written/*/*.jsonl"))
        lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        for line, (prompt, answer) in zip(lines, rows_of(first), strict=True):
            assert (line["prompt_tokens"], line["answer_tokens"]) == (prompt, answer)
            assert (line["prompt"], line["answer"]) == (tokenizer.decode(prompt), tokenizer.decode(answer))
        files[1].unlink()  # as if the run had been killed
        assert rows_of(calibration(passages).batches(tokenizer, tiny)) == rows_of(first)
        assert written == [0, 2, 4, 2]
        for changes in ({"seed": 1}, {"temperature": 0.5}, {"seqlen": 21}, {"prompt_tokens": 9}):
            calibration(passages, **changes).batches(tokenizer, tiny)
        assert len(written) == 4 + 4 * 3
        with torch.no_grad():
            tiny.lm_head.weight[0] += 1
        calibration(passages).batches(tokenizer, tiny)
        assert len(written) == 4 + 5 * 3
        tiny.generation_config.repetition_penalty = 1.5  # counts for nothing
        calibration(passages).batches(tokenizer, tiny)
        assert len(written) == 4 + 5 * 3


def test_a_run_writes_once_for_a_sweep_and_records_overlaps(cli, monkeypatch, tmp_path):
    counted, write = [], SelfWritten.write

    def spy(self, *given):
        counted.append(1)
        return write(self, *given)

    monkeypatch.setattr(SelfWritten, "write", spy)
    rows = [{"prompt": f"{n} " + "the cat " * 10, "response": "yes"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = [f"calibration.text.paths={tmp_path}/rows.jsonl", "calibration.text.form=pairs"]
    texts += [f"evaluation.perplexity_text.text.paths={tmp_path}/rows.jsonl"]
    texts += ["evaluation.perplexity_text.text.column=prompt", "criterion=wanda_sp"]
    mine = ["calibration=self_answers", *texts, "calibration.seqlen=60", "calibration.prompt_tokens=50"]
    first = Record.load(cli(*mine))
    assert len(counted) == 1
    assert first.overlaps is not None
    assert any("100.00% of it" in told and "in files:rows.jsonl" in told for told in first.overlaps)
    Record.load(cli(*mine, "sparsity=0.4"))
    assert len(counted) == 1
    assert "the dense model wrote them, after prompts of at most 50 tokens" in made_by(first, None)
    (about,) = (tmp_path / "results/cache/written").glob("*/about.json")
    assert "self:files:rows.jsonl" in about.read_text()


def test_what_the_model_wrote_is_compared_with_a_test(tiny, tokenizer, passages, tmp_path):
    written = calibration(passages, seqlen=60)
    batches = written.batches(tokenizer, tiny)
    source, answers = written.reads(tokenizer, batches)
    assert source is passages
    assert answers.documents() == [tokenizer.decode(answer) for _, answer in rows_of(batches)]
    (tmp_path / "test.txt").write_text(answers.documents()[0])
    (told,) = overlaps([answers], [Files(f"{tmp_path}/test.txt")])
    assert "is in self:files:text.txt, which calibration or recovery reads" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_tokens": 20}, "prompt_tokens=20 of seqlen=20 leaves no new tokens"),
        ({"prompt_tokens": 1}, "calibration prompt_tokens=1: expected a whole number of at least 2"),
        ({"temperature": -1.0}, "temperature"),
        ({"chat": True}, "asks nothing; expected instructions, or chat=auto"),
        ({"chat": "yes"}, "chat"),
        ({"samples": 0}, "expected a whole number of at least"),
    ],
)
def test_bad_options(passages, changes, message):
    with pytest.raises(ValueError, match=message) as told:
        calibration(passages, **changes)
    assert "\n" not in str(told.value)


def test_bad_prompts_models_and_tokenizers(tiny, tokenizer, passages, questions):
    with pytest.raises(ValueError, match="has 0 prompts, less than calibration samples=5; 9 are longer than"):
        calibration(questions).batches(tokenizer, tiny)
    with pytest.raises(ValueError, match="calibration seqlen=300: the model has 256 positions"):
        calibration(passages, seqlen=300).batches(tokenizer, tiny)
    with pytest.raises(ValueError, match="less than one window of prompt_tokens=99999"):
        calibration(passages, seqlen=100_000, prompt_tokens=99_999).prompts(tokenizer)
    with pytest.raises(ValueError, match="chat=true: this tokenizer has no chat template"):
        calibration(questions, chat=True).batches(tokenizer, tiny)
    with pytest.raises(ValueError, match=r"expected batches\(tokenizer, model\)"):
        calibration(passages).batches(tokenizer)
    for model in (make("bert"), make_pair("t5")):
        with pytest.raises(ValueError, match="cannot continue a text; expected a causal language model"):
            calibration(passages, seqlen=10, prompt_tokens=4).check(model, words())

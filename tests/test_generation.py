"""Generation: written answers, their lengths and their scores, from local files."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from cfsp.checkpoints.load import load
from cfsp.evaluation.answers import Answer, write_answers
from cfsp.evaluation.generation import Generation, mean_of_parts
from cfsp.evaluation.harness_model import HarnessModel
from cfsp.evaluation.measure import measure
from cfsp.evaluation.samples import Samples
from cfsp.storage.cache import Cache

TEMPLATE = "{% for turn in messages %}{{ turn['role'] }} {{ turn['content'] }} {% endfor %}"


@pytest.fixture
def loaded(tiny_checkpoint):
    model, tokenizer = load(tiny_checkpoint)
    model.config.max_position_embeddings = 256
    return model, tokenizer


@pytest.fixture
def files(tmp_path):
    paths = {split: tmp_path / f"{split}.jsonl" for split in ("test", "train")}
    for path, name in zip(paths.values(), ("cat", "dog"), strict=True):
        rows = [
            {"question": f"the {name} sat {'on ' * n}a mat", "answer": f"two #### {n}"} for n in range(1, 6)
        ]
        path.write_text("\n".join(map(json.dumps, rows)))
    return {"gsm8k": {split: str(path) for split, path in paths.items()}}


def evaluator(**options):
    given = {"tasks": ["gsm8k"], "shots": 0, "limit": None, "batch_size": 2, "chat": False, "new_tokens": 6}
    return Generation(**{**given, **options})


@torch.no_grad()
def greedy(model, prompt, count):
    ids = [*prompt]
    for _ in range(count):
        ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


def test_answers_are_those_of_greedy_decoding_whatever_the_batch(loaded):
    model, tokenizer = loaded
    model.generation_config.eos_token_id = None
    prompts = [[5, 6, 7], [8] * 9, [9, 4, 11, 12, 13]]
    for batch_size in (1, 3):
        found = write_answers(model, tokenizer, prompts, (), 5, batch_size)
        for prompt, answer in zip(prompts, found, strict=True):
            written = greedy(model, prompt, 5)
            if tokenizer.eos_token_id in written:
                written = written[: written.index(tokenizer.eos_token_id)]
            assert answer.text == tokenizer.decode(written, skip_special_tokens=True)
            assert answer.tokens == len(written)
            assert answer.ended == (len(written) < 5)


def test_answers_are_greedy_whatever_the_checkpoint_says(loaded):
    model, tokenizer = loaded
    prompts = [[5, 6, 7], [9, 4, 11, 12, 13]]
    before = write_answers(model, tokenizer, prompts, (), 9, 2)
    said = Samples(["the cat"], 9).say(model, tokenizer)
    given = GenerationConfig(
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        min_new_tokens=9,
        bad_words_ids=[[token] for token in range(50)],
        num_beams=2,
        max_new_tokens=1,
        return_dict_in_generate=True,
    )
    model.generation_config = given
    assert write_answers(model, tokenizer, prompts, (), 9, 2) == before
    assert Samples(["the cat"], 9).say(model, tokenizer) == said
    assert model.generation_config is given


def test_an_answer_ends_at_its_stop(loaded):
    model, tokenizer = loaded
    written = greedy(model, [5, 6, 7], 6)
    stop = tokenizer.decode(written[2:3])
    before = tokenizer.decode(written).index(stop)
    (answer,) = write_answers(model, tokenizer, [[5, 6, 7]], ("never", stop), 6, 1)
    assert answer.text == tokenizer.decode(written)[:before]
    assert answer.ended
    assert answer.tokens <= 3
    assert not write_answers(model, tokenizer, [[5, 6, 7]], ("never",), 6, 1)[0].ended


def test_a_prompt_beyond_the_window_is_told(loaded):
    model, tokenizer = loaded
    model.config.max_position_embeddings = 12
    found = write_answers(model, tokenizer, [[5] * 9, [5] * 3], (), 6, 2)
    assert [answer.whole_prompt for answer in found] == [False, True]
    assert found[0].text == write_answers(model, tokenizer, [[5] * 6], (), 6, 1)[0].text


def test_scores_and_lengths_are_kept(loaded, files):
    found = evaluator(files=files).run(*loaded)
    assert {"exact_match/gsm8k@strict-match", "exact_match/gsm8k@flexible-extract"} < set(found)
    score = found["exact_match/gsm8k@strict-match"]
    assert (score.n, score.better) == (5, "higher")
    assert len({*score.outcomes.items}) == 5
    assert sum(score.outcomes.values) / 5 == score.value
    assert score.stderr is not None
    assert (score.protocol["shots"], score.protocol["chat"], score.protocol["new_tokens"]) == (0, False, 6)
    assert score.protocol["ends"] == [0, 2]  # the tokenizer's, and the generation config's
    length, cut = found["answer_tokens/gsm8k"], found["cut_answers/gsm8k"]
    assert 0 < length.value <= 6
    assert length.n == 5
    assert (cut.n, cut.better) == (5, "lower")


@pytest.mark.parametrize("new_tokens", [6, None])
def test_cut_answers_are_told_with_the_model_and_the_limit(
    loaded, files, monkeypatch, tmp_path, capsys, new_tokens
):
    """Also where the figures come from the cache."""
    loaded[0].config.max_position_embeddings = 512
    said = [Answer("", 6, n > 2, n != 1) for n in range(5)]
    monkeypatch.setattr("cfsp.evaluation.harness_model.write_answers", lambda *_: said)
    asked = evaluator(files=files, new_tokens=new_tokens)
    for name in ("dense", "pruned"):
        measure([asked], *loaded, Cache(tmp_path / "cache"), name=name)
        monkeypatch.setattr(Generation, "run", lambda *_: pytest.fail("measured again"))
        told, limit = f"cfsp: {name}: generation gsm8k:", new_tokens or 256
        assert capsys.readouterr().err.splitlines() == [
            f"{told} 3 of 5 answers reached new_tokens={limit} and were cut",
            f"{told} 1 of 5 prompts did not fit into the model's window and lost their beginnings",
        ]


def test_a_right_answer_is_one(loaded, files, monkeypatch):
    said = [Answer(f"it is #### {n}", 4, True, True) for n in (1, 9, 3, 9, 5)]
    monkeypatch.setattr("cfsp.evaluation.harness_model.write_answers", lambda *_: said)
    found = evaluator(files=files).run(*loaded)["exact_match/gsm8k@strict-match"]
    assert found.value == pytest.approx(0.6)
    assert found.outcomes.values == [1, 0, 1, 0, 1]


def test_examples_are_turns_of_a_chat(loaded, files, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    asked = []

    def write(model, tokenizer, prompts, *_):
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        return write_answers(model, tokenizer, prompts, (), 2, 2)

    monkeypatch.setattr("cfsp.evaluation.harness_model.write_answers", write)
    evaluator(files=files, shots=2, chat=True, limit=1).run(model, tokenizer)
    (prompt,) = asked
    assert (prompt.count("user "), prompt.count("assistant ")) == (3, 2)
    assert prompt.index("assistant ") < prompt.index("####")


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"max_gen_toks": 5, "max_new_tokens": 7}, 5),
        ({"max_new_tokens": 7, "until": ["x"]}, 7),
        ({"max_tokens": 8}, 8),
        ({}, 256),
    ],
)
def test_an_answer_is_as_long_as_its_task_allows_by_any_name(options, most, loaded, monkeypatch):
    asked = []

    def write(model, tokenizer, prompts, stops, new_tokens, *_):
        asked.append(new_tokens)
        return [Answer("a cat", 2, True, True)] * len(prompts)

    monkeypatch.setattr("cfsp.evaluation.harness_model.write_answers", write)
    model, tokenizer = loaded
    wrapped = HarnessModel(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=2)
    wrapped.generate_until([SimpleNamespace(args=("the cat", options))])
    assert asked == [most]


@pytest.mark.parametrize(("new_tokens", "most"), [(None, 150), (6, 6)])
def test_room_is_asked_for_answers_as_long_as_the_task_allows(new_tokens, most):
    """terretaqa names its most tokens max_new_tokens, not max_gen_toks."""
    assert evaluator(tasks=["terretaqa"], new_tokens=new_tokens).longest("terretaqa") == most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["piqa"]}, "'piqa' writes no answer; expected a generate_until task"),
        ({"new_tokens": 0}, "generation new_tokens=0: expected a whole number of at least 1"),
        ({"tasks": ["gsm9k"]}, "did you mean 'gsm8k'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluator(**options)


def test_what_the_model_cannot_do_is_refused_before_anything_runs(loaded, files, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match="has no chat template; expected chat=false"):
        evaluator(files=files, chat=True).protocol(model, tokenizer)
    with pytest.raises(ValueError, match="'gsm8k': new_tokens=256: the model has 256 .*at most 255"):
        evaluator(files=files, new_tokens=256).protocol(model, tokenizer)
    assert evaluator(files=files, new_tokens=255).protocol(model, tokenizer)["new_tokens"] == 255
    alone = {"gsm8k": files["gsm8k"]["test"]}
    with pytest.raises(ValueError, match="5 examples before each question, and no file of them"):
        evaluator(files=alone, shots=None).protocol(model, tokenizer)


def test_a_task_with_examples_of_its_own_needs_no_file_of_them(loaded, files):
    path = files["gsm8k"]["test"]
    cot = {"tasks": ["gsm8k_cot"], "files": {"gsm8k_cot": path}}
    assert evaluator(**cot, shots=8).protocol(*loaded)["shots"] == 8
    message = "'gsm8k_cot': 9 examples before each question, and the task has 8 of its own; expected shots=8"
    with pytest.raises(ValueError, match=message):
        evaluator(**cot, shots=9).protocol(*loaded)
    made = "minerva_math_algebra"  # by a function
    assert evaluator(tasks=[made], files={made: path}, shots=4).protocol(*loaded)["shots"] == 4


@pytest.fixture
def ifeval(tmp_path, monkeypatch):
    """The task's evaluation, from a file, wherever its packages are installed."""
    pytest.importorskip("nltk")
    monkeypatch.setattr("cfsp.evaluation.generation.NEEDS", {})
    row = {"key": 1, "prompt": "say yes", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    path = tmp_path / "ifeval.jsonl"
    path.write_text(json.dumps(row))
    return evaluator(tasks=["ifeval"], files={"ifeval": str(path)})


def test_data_of_nltk_that_are_not_here_are_asked_for_before_anything_is_written(
    loaded, ifeval, tmp_path, monkeypatch
):
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    with pytest.raises(ValueError, match="'ifeval': NLTK has no punkt_tab.*python -m nltk.downloader punkt"):
        ifeval.protocol(*loaded)
    (tmp_path / "tokenizers" / "punkt_tab").mkdir(parents=True)
    assert ifeval.protocol(*loaded)["tasks"] == ["ifeval"]


def test_parts_of_a_question_are_a_cluster():
    value, error, n = mean_of_parts([[1, 1], [0], [1]])
    assert (value, n) == (0.75, 4)
    assert error == pytest.approx((((2 - 1.5) ** 2 + 0.75**2 + 0.25**2) * 3 / 2) ** 0.5 / 4)

"""`cfsp-compare`: two models side by side."""

import re

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from cfsp.cli.compare import main, short_names
from cfsp.data.texts import Files
from cfsp.evaluation.perplexity import Perplexity
from cfsp.evaluation.samples import Samples
from cfsp.report.pair import alike, kept

FAST = ["--window", "32", "--windows", "4", "--new-tokens", "3"]


@pytest.fixture
def pruned(tmp_path, cli):
    cli("evaluation=[]", "sparsity=0.4", f"save={tmp_path}/small")
    return tmp_path / "small"


@pytest.fixture
def compare(text_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments):
        main([*map(str, arguments), "--text", str(text_file)])
        return capsys.readouterr()

    return call


def figures(out):
    """Row -> the numbers in it."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    return {cells[0]: cells[1:] for cells in rows}


def test_figures_are_those_of_the_evaluators(compare, tiny_checkpoint, pruned, text_file):
    out, err = compare(tiny_checkpoint, pruned, *FAST, "--prompt", "the cat sat")
    rows, asked = figures(out), {}
    perplexity = Perplexity(Files([str(text_file)], "text"), 32, 8, windows=4)
    for folder in (tiny_checkpoint, pruned):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found = perplexity.run(model, tokenizer)["perplexity/files:text.txt"].value
        said = Samples(["the cat sat"], 3).say(model, tokenizer)["the cat sat"]
        asked[folder] = model.num_parameters(), found, said
    for place, (parameters, found, _) in enumerate(asked.values()):
        assert rows["parameters"][place] == f"{parameters:,}"
        assert rows["perplexity (files:text.txt)"][place] == f"{found:,.2f}"
    assert [" ".join(cell.split()) for cell in rows["the cat sat"]] == [
        " ".join(said.split()) for _, _, said in asked.values()
    ]
    size = sum(path.stat().st_size for path in pruned.glob("*.safetensors"))
    shown = rows["size on disk, MB"][1]
    assert float(shown) == pytest.approx(size / 1e6, rel=0.005)
    assert len(shown.lstrip("0.")) >= 3
    assert "tokens per second (1 x 32 tokens)" in rows
    assert re.fullmatch(r"64 → \d+ \(\d+%\)", rows["1"][0])
    assert "The same in both: query heads, key/value groups." in out
    told = [line.split(": ") for line in err.splitlines() if line.startswith("cfsp-compare")]
    assert all(re.fullmatch(r"\d+ s", time) for _, time, *_ in told)
    assert [stage for *_, stage in told if "loading" in stage] == [
        "loading llama",
        "loading small",
    ]


def test_the_page_is_one_file_that_loads_nothing(compare, tiny_checkpoint, pruned, tmp_path):
    output = tmp_path / "compare.html"
    skip = ["--skip", "speed", "--prompt", "<b>the cat</b>"]
    out, _ = compare(tiny_checkpoint, pruned, *FAST, *skip, "-o", output)
    text = output.read_text()
    assert out.splitlines()[-1] == str(output)
    assert "&lt;b&gt;the cat&lt;/b&gt;" in text
    assert not re.search(r'(src|href)="(?!#|data:)', text)
    assert str(tmp_path) not in text
    for heading in ("Figures", "Kept widths", "What they say"):
        assert f">{heading}</h2>" in text


def test_a_routed_model_shows_what_it_uses(compare, tiny_checkpoint, tmp_path, cli, text_file, capsys):
    cli("evaluation=[]", "+experiment=moefication", "schedule/maker=teal", f"save={tmp_path}/routed")
    out, _ = compare(tiny_checkpoint, tmp_path / "routed", *FAST, "--skip", "speed", "answers")
    dense, routed, _ = figures(out)["MLP units that a token uses, % (files:text.txt)"]
    assert float(dense) == 100
    assert 35 < float(routed) < 65
    dense, routed, _ = figures(out)["of them in the blocks, with the units used, M (files:text.txt)"]
    assert float(routed) < float(dense) < float(figures(out)["multiplications per token, M"][0])
    assert "B is routed: a token uses a part of its MLPs' units" in " ".join(out.split())
    assert "A is routed" not in out
    short = tmp_path / "short.txt"
    short.write_text(text_file.read_text()[:300])
    skip = ["--skip", "answers", "speed"]
    main([str(tiny_checkpoint), str(tmp_path / "routed"), "--text", str(short), *FAST[:2], *skip])
    assert "MLP units that a token uses, % (files:short.txt)" in figures(capsys.readouterr().out)
    out, _ = compare(tiny_checkpoint, tmp_path / "routed", "--skip", "speed", "answers", "perplexity")
    assert "B is routed" in out


def test_what_is_skipped_is_not_measured(compare, tiny_checkpoint):
    out, err = compare(tiny_checkpoint, tiny_checkpoint, "--skip", "speed", "answers", "perplexity")
    assert not re.search("perplexity|tokens per second|What they say", out)
    assert figures(out)["parameters"][2] == "+0.0%"
    assert "timing" not in err


@pytest.mark.slow
def test_other_tokenizers_and_vocabularies_are_told(compare, tiny_checkpoint, tmp_path):
    smaller = tmp_path / "smaller"
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.add_tokens(["the cat"])
    tokenizer.save_pretrained(smaller)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    model.resize_token_embeddings(20 * len(tokenizer))
    model.save_pretrained(smaller)
    out, _ = compare(smaller, tiny_checkpoint, *FAST)  # the tokens that are timed are those of both
    assert "The tokenizers differ, so compare bits per byte and not perplexity." in out


def test_a_chat_template_is_used_where_there_is_one(tiny, tokenizer, monkeypatch):
    template = "{% for turn in messages %}[{{ turn['content'] }}]{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    samples = Samples(["the cat"], 4, chat=True)
    samples.check(tiny, tokenizer)
    plain = Samples(["[the cat]"], 4)
    assert [*samples.say(tiny, tokenizer).values()] == [*plain.say(tiny, tokenizer).values()]


def test_a_text_that_is_not_there_is_told_before_models_load(capsys):
    with pytest.raises(SystemExit):
        main(["reference", "reference", "--text", "nowhere.txt"])
    err = capsys.readouterr().err
    assert "nowhere.txt" in err
    assert "loading" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "reference"], "model path 'nowhere' cannot be loaded"),
        (["--window", "65"], "perplexity window=65: the model has 64 positions; expected at most 64"),
        (["--new-tokens", "0"], "new-tokens=0: expected a whole number of at least 1"),
        (["--prompt", ""], "samples prompt '' has no token"),
        (["--plugin", "no_such_module"], "plugins: no_such_module cannot be imported"),
    ],
)
def test_errors_are_one_line(compare, tiny_checkpoint, capsys, arguments, message):
    models = [] if arguments[0] == "nowhere" else [tiny_checkpoint, tiny_checkpoint]
    with pytest.raises(SystemExit, match="1"):
        compare(*models, *arguments)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("cfsp-compare: error: ")
    assert message in last


def test_blocks_that_are_alike_share_a_row():
    wide, narrow = {"width": 8}, {"width": 4}
    rows = [*alike([wide] * 4, [narrow, narrow, wide])]
    assert rows == [(0, 1, wide, narrow), (2, 2, wide, wide), (3, 3, wide, {})]
    assert (kept(8, 4).text, kept(8, None).text) == ("8 → 4 (50%)", "8 → –")


def test_names_are_short_and_differ():
    assert short_names(["a/one", "b/two"]) == ["one", "two"]
    assert short_names(["a/one", "b/one"]) == ["a/one", "b/one"]

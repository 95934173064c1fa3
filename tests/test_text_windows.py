"""Windows of a text: what a text cannot give is told before the plan, by the evaluator's own name."""

import pytest

from cfsp.checkpoints.load import load
from cfsp.data.texts import Files
from cfsp.evaluation import text_windows
from cfsp.evaluation.fidelity import Fidelity
from cfsp.evaluation.perplexity import Perplexity
from cfsp.evaluation.routed_shares import RoutedShares
from cfsp.running import run

MADE = {
    "perplexity": lambda text, window=32, windows=4: Perplexity(text, window, 4, windows=windows),
    "fidelity": lambda text, window=32, windows=4: Fidelity(text, window, 4, windows=windows),
    "routing": lambda text, window=32, windows=4: RoutedShares(text, window, windows, [1]),
}


@pytest.mark.parametrize("name", MADE)
def test_too_few_windows_are_told_with_the_protocol(name, tiny_checkpoint, text_file, tmp_path):
    loaded, text = load(tiny_checkpoint), Files(str(text_file))
    with pytest.raises(ValueError, match=rf"^{name} windows=9999: text 'files:text.txt' has \d+ of window"):
        MADE[name](text, windows=9999).protocol(*loaded)
    with pytest.raises(ValueError, match=rf"^{name} window=65: the model has 64 positions"):
        MADE[name](text, window=65).protocol(*loaded)
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ValueError, match=rf"^{name}: text 'files:a.txt' has \d+ tokens; expected at least"):
        MADE[name](Files(f"{tmp_path}/a.txt"), windows=1).protocol(*loaded)


@pytest.mark.parametrize("options", [{}, {"stride": 8}, {"bos": True}, {"stride": 8, "bos": True}])
def test_the_check_counts_the_windows_that_are_read(options, tiny_checkpoint, text_file):
    model, tokenizer = load(tiny_checkpoint)
    text = Files(str(text_file))
    count = len(text_windows.TextWindows("perplexity", text, 32, **options).rows(tokenizer))
    for asked in (count, count + 1):
        read = text_windows.TextWindows("perplexity", text, 32, asked, **options)
        if asked == count:
            assert len(read.rows(tokenizer)) == count
        else:
            with pytest.raises(ValueError, match=f"has {count} of window=32"):
                read.causal_protocol(model, tokenizer)


@pytest.mark.parametrize("name", MADE)
def test_a_text_is_read_once(name, tiny_checkpoint, text_file, monkeypatch):
    calls = []
    read = text_windows.token_stream
    monkeypatch.setattr(text_windows, "token_stream", lambda *given: calls.append(given) or read(*given))
    evaluator, loaded = MADE[name](Files(str(text_file))), load(tiny_checkpoint)
    evaluator.protocol(*loaded)
    evaluator.run(*loaded)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["perplexity_text", "routing_text"])
def test_a_run_says_so_before_it_plans(name, cfsp, text_file, monkeypatch):
    monkeypatch.setattr(run, "STAGES", {"load": run.STAGES["load"]})  # nothing after it
    part = f"evaluation.{name}"
    more = [f"{part}.windows=100000", f"{part}.window=32", f"{part}.text.paths={text_file}"]
    code, _, err = cfsp(f"evaluation=[perplexity_text,{name}]", *more)
    assert code == 1
    assert f"{name.removesuffix('_text')} windows=100000: text" in err[0]

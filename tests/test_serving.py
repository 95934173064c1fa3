"""What docs/serve.md shows: one request to a server in this process, and its answer."""

from pathlib import Path

import engine_or_skip  # noqa: F401  # skips where llama.cpp is missing
import pytest
import torch
from pages import blocks

import cfsp
from cfsp.exports.gguf_file import GGUF
from cfsp.plans.plan import Cut, PrunePlan

PAGE = (Path(__file__).parents[1] / "docs" / "serve.md").read_text()


@pytest.mark.slow
def test_a_server_answers_as_transformers_does(tmp_path, monkeypatch):
    model, tokenizer = cfsp.load("reference")
    sites = cfsp.find_sites(model, ["mlp", "attention"])
    kept = {site.name: tuple(range(site.units - 1 - at % 3)) for at, site in enumerate(sites)}
    plan = PrunePlan(tuple(Cut(site.name, site.units, kept[site.name]) for site in sites))
    cfsp.apply(plan, model)
    cfsp.save(tmp_path / "model", model, tokenizer, plan)
    GGUF(type="f32").export(tmp_path / "model", tmp_path / "small.gguf")
    monkeypatch.chdir(tmp_path)
    (shown,) = (text for language, text in blocks(PAGE) if language == "python" and "xllamacpp" in text)
    names = {}
    exec(shown, names)
    ids = tokenizer("Return the number of", return_tensors="pt")
    with torch.no_grad():
        told = model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert names["answer"]["choices"][0]["text"] == tokenizer.decode(told)
    assert names["answer"]["timings"]["predicted_per_second"] > 0

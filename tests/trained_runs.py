"""Runs whose schedule trains: overrides, and what is true of the models that they save."""

import torch
from transformers import AutoModelForCausalLM

import cfsp


def assert_loads_anywhere(folder):
    """cfsp and plain transformers load the same model."""
    mine, tokenizer = cfsp.load(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokens = tokenizer("a word", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(mine(**tokens).logits, plain(**tokens).logits)


def own_text(text_file, window=16, held_out=8):
    return [
        "recovery/data@schedule.data=text",
        f"schedule.data.sources.text.text.paths={text_file}",
        f"schedule.data.window={window}",
        f"schedule.data.held_out={held_out}",
    ]

"""A checkpoint that is loaded, trained further and saved by others has all that transformers expects."""

import pickle
import subprocess
import sys

import pytest
import torch
from families import FAMILIES, batches, make, words
from plans import logits
from pruned_models import cut, emptied
from transformers import Trainer, TrainingArguments

import cfsp
from cfsp.model.blocks import block_modules

FRESH = """
import sys
sys.modules["cfsp"] = None  # importing it would fail
import torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
saved = torch.load(f"{sys.argv[1]}/expected.pt")
with torch.no_grad():
    print((model(**saved["tokens"]).logits - saved["logits"]).abs().max().item())
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_what_a_trainer_saves_loads_in_a_process_that_never_heard_of_cfsp(family, tmp_path, tokens):
    model, plan = cut(family, ["mlp", "attention"], fill=True)
    cfsp.save(tmp_path / "m", model, words(), plan)
    model, tokenizer = cfsp.load(tmp_path / "m")
    rows = [{"input_ids": row, "labels": row} for row in batches(count=1)[0]["input_ids"]]
    options = TrainingArguments(
        tmp_path / "t", max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = Trainer(model, options, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    model.eval()
    torch.save({"tokens": tokens, "logits": logits(model, tokens)}, tmp_path / "trained" / "expected.pt")
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "code"), "HOME": "/"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "trained")],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (0, "0.0\n"), done.stderr
    again, _ = cfsp.load(tmp_path / "trained")
    assert torch.equal(logits(again, tokens), logits(model, tokens))


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("family", FAMILIES)
def test_attentions_and_hidden_states_have_an_entry_for_every_block(family, tokens):
    for model, _ in (emptied(family), cut(family, ["mlp"])):
        model.set_attn_implementation("eager")
        dense = make(family)
        dense.set_attn_implementation("eager")
        asked = {"output_attentions": True, "output_hidden_states": True}
        with torch.no_grad():
            found, whole = model(**tokens, **asked), dense(**tokens, **asked)
        assert len(found.hidden_states) == len(whole.hidden_states) == len(block_modules(model)) + 1
        assert len(found.attentions) == len(whole.attentions) == len(block_modules(model))
        for mine, theirs in zip(found.attentions, whole.attentions, strict=True):
            assert mine.shape[0] == theirs.shape[0]
            assert mine.shape[2:] == theirs.shape[2:]


def test_a_skipped_attention_is_copied_and_pickled(tokens):
    model, _ = emptied("llama")
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again, tokens), logits(model, tokens))
    assert isinstance(again.model.layers[0].self_attn, type(make("llama").model.layers[0].self_attn))

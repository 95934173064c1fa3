"""Saved models in environments of other versions of transformers, without cfsp: `make test-engines`."""

import pytest
import transformers as t
from engines import cut, python_of, run, saved
from families import ENCODER, make, words
from pruned_models import emptied

pytestmark = pytest.mark.engines

LOAD = """
import json, logging, pathlib, sys, tempfile
import torch, transformers
heard, found = [], {}
ear = logging.Handler(logging.WARNING)
ear.emit = lambda record: heard.append(record.getMessage())
logging.getLogger("transformers").addHandler(ear)
for folder in sys.argv[1:]:
    told = torch.load(f"{folder}/expected.pt")
    given = {"trust_remote_code": True, "dtype": torch.float32}
    whole = getattr(transformers, told["head"]).from_pretrained(folder, **given).eval()
    base = transformers.AutoModel.from_pretrained(folder, **given).eval()
    transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        logits, hidden = whole(**told["tokens"]).logits, base(**told["tokens"])[0]
    apart = [(logits - told["logits"]).abs().max().item(), (hidden - told["hidden"]).abs().max().item()]
    said = None
    if hasattr(whole, "generate") and told["head"] == "AutoModelForCausalLM":
        ids = told["tokens"]["input_ids"][:1, :8]
        settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        said = [whole.generate(ids, use_cache=use, **settings)[0].tolist() for use in (True, False)]
    # A plain folder has the family's own classes; the pooler of an encoder's base model is new.
    ours = pathlib.Path(folder, "modeling_pruned.py").exists()
    warned = [one for one in heard if ours and "pooler" not in one]
    with tempfile.TemporaryDirectory() as other:
        whole.save_pretrained(other)
        again = getattr(transformers, told["head"]).from_pretrained(other, **given).eval()
        with torch.no_grad():
            apart.append((again(**told["tokens"]).logits - logits).abs().max().item())
    heard.clear()
    found[folder.rsplit("/", 1)[-1]] = [*apart, said is None or said[0] == said[1], warned]
print()
print(json.dumps({"version": transformers.__version__, "found": found}))
"""


def classifier():
    return t.BertForSequenceClassification(t.BertConfig(**ENCODER, num_labels=3)).eval()


def biased_classifier():
    return t.LlamaForSequenceClassification(
        t.LlamaConfig(**make("llama").config.to_diff_dict() | {"num_labels": 3})
    ).eval()


BOTH = ["mlp", "attention"]
KINDS = {
    "uneven_mlp": lambda: cut("llama", ["mlp"]),
    "uneven_groups": lambda: cut("llama", BOTH),
    "query_heads": lambda: cut("llama", ["mlp", "query_heads"]),
    "biases": lambda: cut("llama", BOTH, fill=True),
    "empty_mlp": lambda: cut("llama", ["mlp"], emptied=("0.mlp",)),
    "empty_first_block": lambda: emptied("llama"),
    "mistral": lambda: cut("mistral", BOTH, fill=True),
    "qwen2": lambda: cut("qwen2", BOTH, fill=True),
    "gpt2": lambda: cut("gpt2", BOTH, fill=True),
    "plain": lambda: cut("llama", ["block"]),
    "encoder": lambda: cut("bert", BOTH, fill=True),
    "encoder_classifier": lambda: cut(classifier, BOTH),
    "decoder_classifier": lambda: cut(biased_classifier, BOTH, fill=True),
}


@pytest.mark.parametrize("environment", ["transformers_5.5.4", "transformers_newest"])
def test_other_versions_compute_the_same(environment, tmp_path):
    python = python_of(environment)
    for name, maker in KINDS.items():
        saved(tmp_path / name, *maker(), words())
        assert (tmp_path / name / "modeling_pruned.py").exists() == (name != "plain"), name
    done = run(python, LOAD, *(tmp_path / name for name in KINDS), folder=tmp_path)
    print(environment, done)
    assert done["version"] == "5.5.4" or environment == "transformers_newest"
    assert {*done["found"]} == {*KINDS}
    for name, (logits, hidden, again, cached, warned) in done["found"].items():
        assert max(logits, hidden) < 1e-5, name
        assert again == 0, name
        assert cached, name
        assert warned == [], name

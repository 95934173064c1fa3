"""vLLM on the CPU computes what transformers computes from saved models and exports: `make test-vllm`."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from socket import socket

import pytest
import torch
import transformers as t
from engines import python_of, run
from plans import ones_for, random_plan

import cfsp
from cfsp.checkpoints.load import REFERENCE
from cfsp.exports.decilm import DeciLM
from cfsp.exports.padded import Padded

pytestmark = pytest.mark.engines

QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
}
IDS = [41, 770, 80, 974, 222, 18, 19, 20, 21, 341, 434, 300, 500, 900, 1200, 77]
RUN = """
import json, sys
from vllm import LLM, SamplingParams
folder, way, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = LLM(model=folder, dtype="float32", model_impl=way, trust_remote_code=True, enforce_eager=True,
            max_model_len=256, max_num_seqs=2, disable_log_stats=True)
settings = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, prompt_logprobs=1, detokenize=False)
(made,) = model.generate([{"prompt_token_ids": ids}], settings, use_tqdm=False)
scores = [one[ids[at]].logprob for at, one in enumerate(made.prompt_logprobs) if one]
print()
print(json.dumps({"tokens": list(made.outputs[0].token_ids), "scores": scores}))
"""


def pruned(kinds, fill=False):
    """The embedded model, cut differently in every block, and its plan."""
    model, _ = cfsp.load("reference")
    sites = cfsp.find_sites(model, kinds)
    fills = {site.name: 0.1 * ones_for([site])[site.name] if fill else None for site in sites}
    plan = random_plan(sites, fills=fills)
    cfsp.apply(plan, model)
    return model, plan


@torch.no_grad()
def expected(model):
    """The next 12 tokens, and the log-probability of each token of the prompt but the first."""
    ids = torch.tensor([IDS])
    scores = model(ids).logits[0].double().log_softmax(-1)[:-1]
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    said = model.generate(ids, **settings)[0, len(IDS) :].tolist()
    return said, scores[torch.arange(len(IDS) - 1), torch.tensor(IDS[1:])]


BOTH = ["mlp", "attention"]
CASES = {
    "uneven_mlp": (["mlp"], False, None, "transformers"),
    "uneven_heads": (["attention"], False, None, "transformers"),
    "biases": (BOTH, True, None, "transformers"),
    "decilm_mlp": (["mlp"], False, DeciLM(), "vllm"),
    "decilm_heads": (["attention"], False, DeciLM(), "vllm"),
    "decilm_biases": (BOTH, True, DeciLM(), "vllm"),
    "padded": (BOTH, False, Padded(), "vllm"),
}
"""Name -> sites, whether with biases, export, implementation in vLLM."""


@pytest.mark.parametrize("case", CASES)
def test_vllm_computes_the_same(case, tmp_path):
    python = python_of("vllm")  # one process per model: a failed load spoils the next
    kinds, fill, exporter, way = CASES[case]
    model, plan = pruned(kinds, fill)
    cfsp.save(tmp_path / "m", model, t.AutoTokenizer.from_pretrained(REFERENCE), plan)
    folder = tmp_path / "m"
    if exporter is not None:
        exporter.export(folder, tmp_path / "out")
        folder = tmp_path / "out"
    found = run(python, RUN, folder, way, json.dumps(IDS), folder=tmp_path, **QUIET)
    said, scores = expected(model)
    apart = (torch.tensor(found["scores"], dtype=torch.float64) - scores).abs().max().item()
    print(case, way, f"largest difference of log-probabilities {apart:.1e}", found["tokens"] == said)
    assert found["tokens"] == said
    assert apart < 1e-4


@contextmanager
def serving(python, folder, name, home):
    """An OpenAI server of vLLM for the block; yields its address when it answers."""
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "2", "--trust-remote-code"]
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{home}/modules", "HOME": str(home)}
    environment |= {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"} | QUIET
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, home / "server.log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)


def wait_for(address, server, log, most=300):
    """Wait until an address answers; fail with the log's end if the server ends or does not come."""
    for _ in range(most):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"no answer; the server said:\n{log.read_text()[-4000:]}")


def test_the_server_answers_as_transformers_does(tmp_path):
    python = python_of("vllm")
    model, plan = pruned(["mlp"])
    tokenizer = t.AutoTokenizer.from_pretrained(REFERENCE)
    cfsp.save(tmp_path / "m", model, tokenizer, plan)
    DeciLM().export(tmp_path / "m", tmp_path / "out")
    wanted = {"model": "pruned", "prompt": "def main(", "max_tokens": 8, "temperature": 0}
    with serving(python, tmp_path / "out", "pruned", tmp_path) as address:
        request = urllib.request.Request(
            f"{address}/completions", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            said = json.loads(answer.read())
    ids = tokenizer(wanted["prompt"], return_tensors="pt")["input_ids"]
    made = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    print(repr(said["choices"][0]["text"]), said["usage"])
    assert said["choices"][0]["text"] == tokenizer.decode(made, skip_special_tokens=True)

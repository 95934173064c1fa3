"""One process of a training whose weights are in pieces; `test_processes.py` starts two.

accelerate shards over GPUs only. Here it is told that its two CPUs are GPUs, after which all that runs
is what would run on them: `fully_shard`, its checkpoints, their loading, and the whole model at the end.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, AutoTokenizer

from cfsp.checkpoints.load import REFERENCE
from cfsp.data.examples import Examples
from cfsp.data.sources import Prose
from cfsp.data.texts import Files
from cfsp.recovery.base import Setting
from cfsp.recovery.finetune import Finetune
from cfsp.training.arguments import Training
from cfsp.training.base import Change
from cfsp.training.full import Full
from cfsp.training.lora import Lora
from cfsp.training.next_token import NextToken
from cfsp.training.trainer import LossTrainer

checkpoint, text, folder, kind, steps, pieces = sys.argv[1:]
create = LossTrainer.create_accelerator_and_postprocess


def on_gpus(self):
    if pieces != "whole":
        PartialState().distributed_type = DistributedType.MULTI_GPU
    create(self)


class Watched(NextToken):
    sharded = False

    def loss(self, model, inputs, dense, change, labels_in_step):
        Watched.sharded |= any(isinstance(part, FSDPModule) for part in model.modules())
        return super().loss(model, inputs, dense, change, labels_in_step)


LossTrainer.create_accelerator_and_postprocess = on_gpus
training = {"epochs": 1, "max_steps": int(steps), "learning_rate": 1e-2, "batch_size": 2, "accumulation": 1}
training |= {"warmup": 0, "scheduler": "constant", "weight_decay": 0.0, "evaluate_every": 2, "patience": None}
recovery = Finetune(
    parameters=Full() if kind == "full" else Lora(rank=4, alpha=8, dropout=0.0),
    objective=Watched(),
    data=Examples({"text": Prose(Files(text))}, None, window=16, packing=True, held_out=8, seed=0),
    training=Training(**training, arguments={"fsdp": True} if pieces == "sharded" else {}),
    seed=0,
)
tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
model = AutoModelForCausalLM.from_pretrained(checkpoint)
setting = Setting(model, tokenizer, Change((0, 1), (0.1, 0.3), None), Path(folder) / "training")
recovered = recovery.run(setting, recovery.data.split(tokenizer))
rank = PartialState().process_index
torch.save(dict(recovered.model.state_dict()), Path(folder) / f"{rank}.pt")
told = recovered.training | {
    "sharded": Watched.sharded,
    "tied": recovered.model.get_input_embeddings().weight is recovered.model.get_output_embeddings().weight,
    "left": any(isinstance(part, FSDPModule) for part in recovered.model.modules()),
}
(Path(folder) / f"{rank}.json").write_text(json.dumps(told))

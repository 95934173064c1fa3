"""Train the embedded reference model on the text of Python's own standard library.

    python experiments/reference_model/train.py --output cfsp/reference

Needs no network and no GPU; 40 to 60 minutes on two cores. The log goes to `log.jsonl` beside
this script. `measure.py` measures the model.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from cfsp.data.texts import Stdlib

WINDOW, VOCABULARY, END = 512, 4032, "<|end|>"
DOCUMENTATION_SHARE = 0.4  # of the windows; the rest is source
HERE = Path(__file__).parent


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which encodes any text and decodes it unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """Return one stream of tokens, with the end token after each document."""
    encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
    return torch.tensor([token for ids in encoded for token in [*ids, tokenizer.eos_token_id]])


class RandomWindows(Dataset):
    """Random windows; the start of window i depends on the seed and i only."""

    def __init__(self, streams: dict[str, torch.Tensor], length: int, seed: int):
        self.streams, self.length, self.seed = streams, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        dice = random.Random(self.seed * 1_000_003 + index)
        kind = "documentation" if dice.random() < DOCUMENTATION_SHARE else "source"
        stream = self.streams[kind]
        start = dice.randrange(len(stream) - WINDOW)
        window = stream[start : start + WINDOW]
        return {"input_ids": window, "labels": window}


class WriteLog(TrainerCallback):
    """Writes the log as it grows, so that a killed run has one too."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        with (HERE / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def reference_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return a Llama with grouped-query attention, 3.98 M parameters; MLP width a multiple of 128."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write bfloat16 weights whose config asks for float32, which any CPU computes well."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    changes = {"dtype": "float32", "use_cache": True}  # the Trainer switched the cache off
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3600, help="of 4,096 tokens each")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_seed(options.seed)
    (HERE / "log.jsonl").unlink(missing_ok=True)

    train = {kind: Stdlib("train", kind).documents() for kind in ("documentation", "source")}
    tokenizer = train_tokenizer(train["documentation"] + train["source"])
    streams = {kind: encode(tokenizer, documents) for kind, documents in train.items()}
    held_out = encode(tokenizer, Stdlib("calibration").documents())
    held_out = held_out[: len(held_out) // WINDOW * WINDOW].view(-1, WINDOW)
    print({kind: len(stream) for kind, stream in streams.items()}, "tokens to train on")

    work = Path("outputs") / "reference_model"
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=options.steps,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=min(150, options.steps // 10),
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=max(1, options.steps // 12),
        save_strategy="steps",
        save_steps=max(1, options.steps // 12),
        save_total_limit=2,
        load_best_model_at_end=True,
        logging_steps=50,
        report_to=[],
        seed=options.seed,
        dataloader_drop_last=True,
    )
    trainer = Trainer(
        model=LlamaForCausalLM(reference_config(tokenizer)),
        args=arguments,
        train_dataset=RandomWindows(streams, options.steps * 8, options.seed),
        eval_dataset=[{"input_ids": row, "labels": row} for row in held_out],
        callbacks=[WriteLog()],
    )
    trainer.train()
    save(trainer.model, tokenizer, options.output)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()

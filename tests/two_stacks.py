"""Tiny random encoder-decoders, their tokenizer, and a toy: say the first words of a document again."""

import json
import random
from pathlib import Path

import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "cat dog film tree sat ran saw was under over good bad old new the who where in by".split()
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
VOCABULARY, POSITIONS = len(SPECIAL) + len(WORDS), 48
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "init_std": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "forced_eos_token_id": 1,
    "decoder_start_token_id": 1,
    "bos_token_id": 3,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 2,  # transformers 5 cannot cache a T5 whose stacks differ in depth
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
PAIRS = {
    "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(**BART)),
    "bart_of_other_heads": lambda: t.BartForConditionalGeneration(
        t.BartConfig(**BART | {"decoder_attention_heads": 2})
    ),
    "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**T5)),
    "t5_gated": lambda: t.T5ForConditionalGeneration(
        t.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
}


def make_pair(name: str, seed: int = 0) -> t.PreTrainedModel:
    """A tiny model in eval mode. Its biases are not zero."""
    torch.manual_seed(seed)
    model = PAIRS[name]().eval()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if path.endswith("bias") or "relative_attention_bias" in path:
                weight.normal_(std=0.5)
    return model


def pair_batches(count: int = 2, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Sources and targets of different lengths, both padded."""
    dice = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids, labels = (torch.randint(2, VOCABULARY, (3, size), generator=dice) for size in (11, 7))
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        labels[2, 4:] = -100
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def pair_tokenizer() -> t.PreTrainedTokenizerBase:
    """Words, and the end of a text behind them."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    return t.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


def saved_pair(folder: Path, name: str) -> Path:
    make_pair(name).save_pretrained(folder)
    pair_tokenizer().save_pretrained(folder)
    return folder


def summaries(path: Path, rows: int, seed: int) -> Path:
    """Documents of 5 to 9 words; the summary is the first three."""
    dice = random.Random(seed)
    lines = []
    for _ in range(rows):
        words = dice.choices(WORDS, k=dice.randint(5, 9))
        lines.append(json.dumps({"document": " ".join(words), "summary": " ".join(words[:3])}))
    path.write_text("\n".join(lines) + "\n")
    return path

"""A tiny encoder with the words of a toy: whether "good" occurs in a sentence."""

import random
from pathlib import Path

import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "a cat dog film tree sat ran saw was under over good bad old new the who where in by ? .".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def encoder_tokenizer(pad: str | None = "[PAD]") -> t.PreTrainedTokenizerBase:
    """Words and [CLS] a [SEP] b [SEP], with token types."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    return t.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=pad,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def encoder(kind: str = "BertForSequenceClassification", **options) -> t.PreTrainedModel:
    torch.manual_seed(0)
    config = t.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        **options,
    )
    return getattr(t, kind)(config).eval()


def saved_encoder(folder: Path, kind: str = "BertForSequenceClassification", pad="[PAD]", **options) -> Path:
    encoder(kind, **options).save_pretrained(folder)
    encoder_tokenizer(pad).save_pretrained(folder)
    return folder


def toy(path: Path, rows: int, seed: int, tell=lambda good: str(int(good))) -> Path:
    """Sentences of 3 to 9 words, half of them with "good"."""
    dice = random.Random(seed)
    others = [word for word in WORDS[:-2] if word != "good"]
    lines = ["sentence\tlabel"]
    for row in range(rows):
        words = dice.choices(others, k=dice.randint(3, 9))
        if row % 2:
            words[dice.randrange(len(words))] = "good"
        lines.append(f"{' '.join(words)}\t{tell(row % 2)}")
    path.write_text("\n".join(lines) + "\n")
    return path

"""Measure the reference model on held-out documentation, beside simple models of the same text.

python experiments/reference_model/measure.py
"""

from __future__ import annotations

import gzip
import lzma
import math
from collections import Counter, defaultdict

from train import encode

from cfsp.checkpoints.load import load
from cfsp.data.texts import Stdlib
from cfsp.evaluation.perplexity import Perplexity


def unigram_bits(train: list[int], test: list[int], vocabulary: int) -> float:
    """Return the total bits of the test tokens under add-one counts of the training tokens."""
    counts = Counter(train)
    total = len(train) + vocabulary
    return -sum(math.log2((counts[token] + 1) / total) for token in test)


def trigram_bits(train: list[int], test: list[int], vocabulary: int) -> float:
    """Return the total bits under a trigram model with Witten-Bell interpolation (1991) down to uniform."""
    counts: dict[tuple[int, ...], Counter] = defaultdict(Counter)
    for order in range(3):
        for end in range(order, len(train)):
            counts[tuple(train[end - order : end])][train[end]] += 1

    def probability(context: tuple[int, ...] | None, token: int) -> float:
        if context is None:
            return 1 / vocabulary
        shorter = probability(context[1:] if context else None, token)
        seen = counts.get(context)
        if not seen:
            return shorter
        kinds, total = len(seen), seen.total()
        return (seen[token] + kinds * shorter) / (total + kinds)

    return -sum(math.log2(probability(tuple(test[max(0, i - 2) : i]), token)) for i, token in enumerate(test))


def main() -> None:
    model, tokenizer = load("reference")
    train = [*Stdlib("train", "documentation").documents(), *Stdlib("train", "source").documents()]
    text = Stdlib("test").joined()
    raw = text.encode()
    train_ids = encode(tokenizer, train).tolist()
    test_ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    vocabulary = len(tokenizer)
    metrics = Perplexity(Stdlib("test"), window=512, batch_size=8).run(model, tokenizer)
    found = metrics["bits_per_byte/stdlib:test"]
    bits = {
        "unigram of the model's tokens, add-one": unigram_bits(train_ids, test_ids, vocabulary),
        "gzip -9 of the test text by itself": 8 * len(gzip.compress(raw, 9)),
        "xz -9e of the test text by itself": 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)),
        "trigram of the model's tokens, Witten-Bell": trigram_bits(train_ids, test_ids, vocabulary),
        f"**reference model** ({model.num_parameters():,} parameters)": found.value * len(raw),
    }
    print(f"{len(raw):,} bytes, {len(test_ids):,} tokens of held-out documentation\n")
    print("| model | bits per byte |\n|---|---|")
    for name, total in bits.items():
        print(f"| {name} | {total / len(raw):.3f} |")
    print(f"\nstandard error over windows {found.stderr:.3f}; ", end="")
    print(f"perplexity {metrics['perplexity/stdlib:test'].value:.2f} per token in windows of 512 tokens")


if __name__ == "__main__":
    main()

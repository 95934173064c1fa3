"""Batches of examples of about the same length: every example once, little padding, an order that repeats."""

import random

import pytest

from cfsp.training.length_groups import LengthGroups


def lengths(count):
    dice = random.Random(0)
    return [dice.randint(3, 60) for _ in range(count)]


def batches(order, size):
    return [order[first : first + size] for first in range(0, len(order), size)]


def padded(groups, of):
    return sum(len(group) * max(of[index] for index in group) for group in groups)


@pytest.mark.parametrize("count", [1, 7, 64, 1000])
def test_every_example_comes_once(count):
    order = LengthGroups(lengths(count), 8, seed=1)
    assert sorted(order) == list(range(count)) == list(range(len(order)))


def test_little_of_a_batch_is_padding():
    of = lengths(1000)
    together = padded(batches([*LengthGroups(of, 8, seed=1)], 8), of)
    apart = padded(batches(random.Random(1).sample(range(1000), 1000), 8), of)
    assert sum(of) <= together < 1.1 * sum(of) < apart


def test_batches_are_in_random_order():
    of = lengths(1000)
    longest = [max(of[index] for index in group) for group in batches([*LengthGroups(of, 8, seed=1)], 8)]
    half = len(longest) // 2
    assert abs(sum(longest[:half]) / half - sum(longest[half:]) / (len(longest) - half)) < 8


def test_the_order_depends_on_seed_and_epoch_alone():
    first, second = (LengthGroups(lengths(100), 8, seed=1) for _ in range(2))
    random.random()
    assert [*first] == [*first] == [*second]
    second.set_epoch(1)
    assert [*first] != [*second]
    assert [*first] != [*LengthGroups(lengths(100), 8, seed=2)]

"""Exchanges: the joint search on errors that are known in closed form."""

import itertools

import pytest
from known_errors import Known

from cfsp.allocators.exchange_units import exchange_units
from cfsp.allocators.exchanges import Terms, best_exchanges


def terms(prices, limit, units=16):
    return Terms({name: range(1, units + 1) for name in prices}, prices, limit)


def copies(widths):
    """Either of the sites a and b does what both do; c is worth less."""
    return (16 - max(widths["a"], widths["b"])) ** 2 + 0.1 * (16 - widths["c"]) ** 2


def test_a_copy_is_widened_at_the_cost_of_what_matters_less():
    start = {"a": 2, "b": 2, "c": 16}
    found = exchange_units(start, terms(dict.fromkeys("abc", 1.0), 20), Known(copies), rounds=30)
    assert sum(found.widths.values()) == 20
    assert found.before == copies(start)
    assert found.after == copies(found.widths) < copies(start) / 4
    errors = [found.before, *(move["error"] for move in found.moves)]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)


def rugged(widths):
    """Changes of several sites do not add up, and many that look good are not."""
    numbers = [*widths.values()]
    smooth = sum((place + 1) * (16 - width) ** 2 for place, width in enumerate(numbers))
    return smooth * (1 + 0.02 * (sum(width**2 for width in numbers) % 3))


@pytest.mark.parametrize("prices", [[1, 1, 1, 1, 1, 1], [3, 1, 2, 3, 1, 2], [40, 1, 1, 40, 1, 1]])
def test_every_trial_uses_up_the_budget_and_no_accepted_one_raises_the_error(prices):
    prices = {name: float(price) for name, price in zip("abcdef", prices, strict=True)}
    start = {"a": 4, "b": 9, "c": 12, "d": 15, "e": 5, "f": 8}
    limit = sum(start[name] * prices[name] for name in start) + 0.9  # less than any unit
    known = Known(rugged)
    found = exchange_units(start, terms(prices, limit), known, rounds=30)
    errors = [found.before, *(move["error"] for move in found.moves)]
    assert len(errors) > 2
    assert all(later < before for before, later in itertools.pairwise(errors))
    assert found.after == errors[-1] == rugged(found.widths)
    assert max(len(move["widths"]) for move in found.moves) > 2
    for widths in known.asked:
        spent = sum(widths[name] * prices[name] for name in widths)
        assert spent <= limit
        assert limit - spent < min(prices[name] for name in widths if widths[name] < 16)


def test_a_whole_site_goes_where_its_last_units_do_nothing():
    def error(widths):  # no narrower width of a is better than this one; none at all is
        return 5 * (widths["a"] in range(1, 8)) + 16 - widths["b"]

    rungs = {"a": range(17), "b": range(17)}
    found = exchange_units({"a": 8, "b": 4}, Terms(rungs, {"a": 1.0, "b": 1.0}, 12), Known(error), rounds=20)
    assert found.widths == {"a": 0, "b": 12}


def test_no_trial_is_made_once_the_passes_are_spent():
    start, alike = {"a": 2, "b": 2, "c": 16}, terms(dict.fromkeys("abc", 1.0), 20)
    found = exchange_units(start, alike, Known(copies, most=1), rounds=9)
    assert (found.widths, found.moves) == (start, [])
    nothing = exchange_units(start, alike, Known(copies, most=0), rounds=9)
    assert (nothing.before, nothing.after) == (None, None)


def test_equal_exchanges_are_taken_in_the_order_of_the_sites():
    names = [f"site.{number}" for number in range(12)]
    widths = dict.fromkeys(names, 8)
    changes = {name: {7: 0.0, 9: -1.0} for name in names}
    alike = terms(dict.fromkeys(names, 1.0), 12 * 8)
    found = best_exchanges(alike, widths, changes, 1.0)
    assert [(*one.narrower, *one.wider) for one in found] == [*zip(names[::2], names[1::2], strict=True)]

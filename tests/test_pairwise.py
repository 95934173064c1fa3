"""What `make test` leaves out of a product is only what other rows cover."""

from itertools import combinations, product

from pairwise import marked_product, pairwise


def test_any_two_values_meet():
    axes = ("abc", "de", "fghi", "jk")
    chosen = pairwise(*axes)
    met = {pair for row in chosen for pair in combinations(enumerate(row), 2)}
    assert met == {pair for row in product(*axes) for pair in combinations(enumerate(row), 2)}
    assert 12 <= len(chosen) < 20


def test_the_rest_is_marked_and_not_lost():
    cases = marked_product("abc", "de", "fgh")
    assert [case.values for case in cases] == [*product("abc", "de", "fgh")]
    assert sum(not case.marks for case in cases) == len(pairwise("abc", "de", "fgh"))

"""Places for running streams."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse.errors import TooManyStreams
from quart_openai_sse.limits.streams import Places


def test_nobody_gets_more_places_than_there_are_in_all() -> None:
    places = Places(2)
    places.take("ann", at_most=None)
    places.take("bob", at_most=None)
    with pytest.raises(TooManyStreams, match="Too many streams are running"):
        places.take("cid", at_most=None)
    places.give_back("ann")
    places.take("cid", at_most=None)
    assert places.taken == 2


def test_an_owner_gets_no_more_than_its_own_limit() -> None:
    places = Places(10)
    places.take("ann", at_most=1)
    with pytest.raises(TooManyStreams, match="You have too many streams running"):
        places.take("ann", at_most=1)
    places.take("bob", at_most=1)
    places.give_back("ann")
    places.take("ann", at_most=1)
    assert places.taken == 2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_what_is_taken_and_given_back_is_never_more_nor_less(steps: Sequence[tuple[str, bool]]) -> None:
    places, mine = Places(5), {"a": 0, "b": 0, "c": 0}
    for owner, takes in steps:
        if not takes:
            if mine[owner]:
                places.give_back(owner)
                mine[owner] -= 1
            continue
        allowed = sum(mine.values()) < 5 and mine[owner] < 2
        try:
            places.take(owner, at_most=2)
        except TooManyStreams:
            assert not allowed
        else:
            assert allowed
            mine[owner] += 1
        assert places.taken == sum(mine.values())

"""Which members of a request are refused."""

from __future__ import annotations

from typing import Any

import pytest

from quart_openai_sse.errors import InvalidRequest
from quart_openai_sse.protocol.member_rules import GATEWAY_MEMBERS, MemberRules

BODY: dict[str, Any] = {"model": "m", "messages": [], "stream": True, "stream_options": {}}


def refused(body: dict[str, Any], *, allowed: Any = None, denied: Any = ()) -> str | None:
    """The name of the member for which *body* is refused."""
    try:
        MemberRules(allowed=allowed, denied=denied).check({**BODY, **body})
    except InvalidRequest as error:
        return error.param
    return None


@pytest.mark.parametrize("name", sorted(GATEWAY_MEMBERS))
def test_what_redirects_a_gateway_is_refused_unless_it_is_allowed(name: str) -> None:
    assert refused({name: "x"}) == name
    assert refused({"extra_body": {name: "x"}}) == f"extra_body.{name}"
    assert refused({name: "x"}, allowed=[name]) is None
    assert refused({"extra_body": {name: "x"}}, allowed=[name, "extra_body"]) is None
    assert refused({name: "x"}, allowed=[name], denied=[name]) == name


@pytest.mark.parametrize(
    ("body", "rules", "expected"),
    [
        ({"anything": 1, "user": "u"}, {}, None),
        ({"n": 1}, {"denied": ["n"]}, "n"),
        ({"n": None}, {"denied": ["n"]}, None),
        ({"extra_body": {"n": 1}}, {"denied": ["n"]}, "extra_body.n"),
        ({"extra_body": {"n": None}}, {"denied": ["n"]}, None),
        ({"extra_body": ["n"]}, {"denied": ["n"]}, None),
        ({"extra_body": {"n": 1}}, {"allowed": ["seed"]}, "extra_body"),
        ({}, {"allowed": []}, None),
        ({"seed": 1}, {"allowed": []}, "seed"),
        ({"seed": 1}, {"allowed": ["seed"]}, None),
        ({}, {"denied": ["stream_options"]}, "stream_options"),
    ],
)
def test_members_are_allowed_and_denied_by_name(body: Any, rules: Any, expected: str | None) -> None:
    assert refused(body, **rules) == expected


@pytest.mark.parametrize("denied", [[], ["n"]])
def test_the_suspects_are_all_names_that_may_need_a_check(denied: list[str]) -> None:
    rules = MemberRules(allowed=None, denied=denied)
    assert {*GATEWAY_MEMBERS, "extra_body", *denied} == rules.suspects

"""Three upstreams, none of them sound: every request is answered, and who fails is spared."""

from __future__ import annotations

import pytest

from quart_openai_sse.upstreams.breaker import BreakerState
from tests.chaos.failover import expected, refused, steps
from tests.chaos.statuses import KINDS, Kind


async def test_every_request_is_answered_and_who_fails_is_spared() -> None:
    first, second, third, fourth = await steps()
    assert {each.answer for each in (first, second, third, fourth)} == {"200 completed"}
    assert {each.upstream for each in (first, second, third, fourth)} == {"flaky"}
    assert first.failures[:3] == (
        "dead: upstream_unreachable",
        "slow: first_output_timeout",
        "flaky: upstream_truncated",
    )
    assert "slow: first_output_timeout" in second.failures
    assert (third.failures, third.attempts) == ((), 1)
    assert third.breakers == {"dead": BreakerState.OPEN, "slow": BreakerState.OPEN, "flaky": BreakerState.CLOSED}
    assert fourth.failures[0] == "dead: upstream_unreachable"  # one probe each, and no more
    assert fourth.breakers == third.breakers


@pytest.mark.parametrize("by", [2, 3], ids=["two refuse", "all refuse"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_a_refusal_goes_where_it_may_be_answered(kind: Kind, by: int) -> None:
    assert await refused(kind, by=by) == expected(kind, by=by)

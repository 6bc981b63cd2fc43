"""What callers are shown of an upstream's sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_openai_sse.protocol.upstream_sentences import LONGEST, show, without_keys

SHOWN = {
    "Limit reached in organization org-AbC123 on requests.": "Limit reached in organization [account] on requests.",
    "in organization `org_01hxyz9` on tokens": "in organization `[account]` on tokens",
    "Project `proj_abc` does not have access to it": "Project `[account]` does not have access to it",
    "Team: 8d1f2c3a-aaaa-bbbb, API key ID: 7777-1234, Model: grok-4-0709": (
        "Team: [account], API key ID: [account], Model: grok-4-0709"
    ),
    "projects/acme-prod/locations/us-central1": "projects/[account]/locations/us-central1",
    'team "Acme Ltd" is over its limit': 'team "[account]" is over its limit',
    "See https://platform.example.com/limits?org=1, please": "See [address] please",
    "connect ECONNREFUSED 10.0.0.7:8000": "connect ECONNREFUSED [address]",
    "no route to [2001:db8::1]": "no route to [[address]]",
    "getaddrinfo ENOTFOUND vllm-3.prod.internal": "getaddrinfo ENOTFOUND [address]",
    "api.acme.co.uk is down": "[address] is down",
    "upstream vllm-3:8000 is down": "upstream [address] is down",
    "localhost:11434 refused": "[address] refused",
    "worker gpu-node-7 ran out of memory": "worker [address] ran out of memory",
    "ask ops@acme.example": "ask [address]",
    "Incorrect API key provided: sk-1***2.": "Incorrect API key provided: [key].",
    "key gsk_abcdefghijkl0123": "key [key]",
    "token eyJhbGciOi.eyJzdWIiOi.c2ln": "token [key]",
    "Authorization: Bearer abcdef": "Authorization: Bearer [key]",
    "You have $12.50 left, or 3.20 USD": "You have [amount] left, or [amount]",
    "balance: -0.02": "balance: [amount]",
    "you can only afford 3021": "you can only afford [amount]",
    "余额 ¥1,200.50": "余额 [amount]",
    "用户剩余额度: \uff040.03, 余额\uff1a-0.35": "用户剩余额度: [amount], 余额\uff1a[amount]",
    "used 3.20 € of 5 $": "used [amount] of [amount]",
    "Current cost: 10.5, max_budget=10.0; spend for token: 7.2e-05": (
        "Current cost: [amount], max_budget=[amount]; spend for token: [amount]"
    ),
    "Account acme is suspended, see your bills": "Account [account] is suspended, see your bills",
    "no model arn:aws:bedrock:us-east-1:1234:profile/x": "no model [account]",
    "/subscriptions/1-2/resourceGroups/acme/x": "/subscriptions/[account]/resourceGroups/[account]/x",
    "account org-abc<ak-f3xyz123abc45>": "account [account]<[key]>",
    "AKIAIOSFODNN7EXAMPLE, ghp_abcdefghijkl, dapi0123456789abcdef": "[key], [key], [key]",
    "Authorization: abc123def; token='0123456789'": "Authorization: [key]; token='[key]'",
    "Cannot connect to host ollama:11434 ssl:default": "Cannot connect to host [address] ssl:default",
    "HTTPConnectionPool(host='llama', port=8000)": "HTTPConnectionPool(host='[address]', port=8000)",
    "dial tcp: lookup vllm on 127.0.0.11:53: no such host": "dial tcp: lookup [address] on [address]: no such host",
    "getaddrinfo ENOTFOUND vllm": "getaddrinfo ENOTFOUND [address]",
    "connect ECONNREFUSED ::1:11434": "connect ECONNREFUSED [address]",
}  # fmt: skip


@pytest.mark.parametrize(("said", "shown"), SHOWN.items(), ids=str)
def test_keys_accounts_addresses_and_amounts_are_taken_out(said: str, shown: str) -> None:
    assert show(said).text == shown
    assert show(shown).text == shown


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens (1000 for the answer).",
        "messages.0.content must be a string; tools[0].function.name is missing; see tools.run",
        "Model gpt-4.1 and llama3.1:8b, version 1.2.3, error-code:1301, at 12:30:45 in std::vector",
        "Tool call validation failed: parameters for tool get_weather did not match schema",
        "the user has no access; the project owner, team lead and account manager know why",
        "risk-free: sk-ip this; an org-wide rule",
        "内容违规",
        "a lookup failed: no such key; could not resolve hostnames; the host is busy; a budget: 1024 is too low",
        "Unexpected token: 'x'; max_tokens: 100000; the organization was asked; an AK-47 is no tool",
    ],
)
def test_what_helps_a_caller_is_left_as_it_is(said: str) -> None:
    assert show(said) == (said, ())


def test_what_was_taken_out_is_listed_but_no_key() -> None:
    shown = show("org-abc: sk-abcdef123456 at https://api.acme.com/v1?key=AIzaSyA1234567890")
    assert shown.text == "[account]: [key] at [address]"
    assert shown.withheld == ("https://api.acme.com/v1?key=[key]", "org-abc")
    assert without_keys("org-abc: sk-abcdef123456") == "org-abc: [key]"


def test_a_sentence_is_one_printable_line() -> None:
    assert show("a\r\nb\x1b[31m\tc\u2028d ").text == "a b [31m c d"


@given(st.text(max_size=3000))
def test_a_sentence_is_bounded_and_printable_whatever_was_said(said: str) -> None:
    shown = show(said).text
    assert shown.isprintable()
    assert len(shown) <= LONGEST
    assert len(show("x" * 5000).text) == len(show("::1 " * 5000).text) == LONGEST

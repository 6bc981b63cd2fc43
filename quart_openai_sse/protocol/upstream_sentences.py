"""What callers are shown of an upstream's sentence: without keys, accounts, addresses and amounts of money."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from ipaddress import AddressValueError, IPv6Address
from typing import NamedTuple

LONGEST = 1000
"""The most characters that are shown of a sentence."""


class Shown(NamedTuple):
    """A sentence as callers are shown it, and the pieces that were taken out of it."""

    text: str
    withheld: tuple[str, ...]


def show(sentence: str) -> Shown:
    """*sentence* for callers: one printable line of at most `LONGEST` characters, without what only operators may see.

    In place of URLs, host names, IP and e-mail addresses it has `[address]`, of keys and tokens `[key]`, of the ids of
    organisations, projects and other accounts `[account]`, and of amounts of money `[amount]`.
    """
    text = without_keys(one_line(sentence, LONGEST))
    withheld: list[str] = []
    for pattern, mark, is_meant in _OTHERS:
        text = _replace(text, pattern, mark, is_meant, withheld)
    return Shown(one_line(text, LONGEST), tuple(withheld))  # a mark may be longer than what it stands for


def without_keys(text: str) -> str:
    """*text* with `[key]` in place of keys and tokens, also of those that are abbreviated."""
    for pattern in _KEYS:
        text = _replace(text, pattern, "[key]", _any, [])
    return text


def one_line(text: str, longest: int) -> str:
    """*text* as one printable line of at most *longest* characters."""
    head = text[: 2 * longest]
    line = " ".join("".join(each if each.isprintable() else " " for each in head).split())
    return line if len(line) <= longest and len(head) == len(text) else line[: longest - 1] + "…"


def _replace(
    text: str, pattern: re.Pattern[str], mark: str, is_meant: Callable[[str], bool], withheld: list[str]
) -> str:
    """*text* with *mark* in place of each `piece` of *pattern* that *is_meant*, which is added to *withheld*."""

    def replaced(found: re.Match[str]) -> str:
        piece = found["piece"]
        if not is_meant(piece):
            return found[0]
        withheld.append(piece)
        start, end = found.start("piece") - found.start(), found.end("piece") - found.start()
        return found[0][:start] + mark + found[0][end:]

    return pattern.sub(replaced, text)


def _any(_piece: str) -> bool:
    return True


def _is_ipv6(piece: str) -> bool:
    """Whether it is an address, or one with a port behind it as Node writes it."""
    for address in (piece, piece.rpartition(":")[0]):
        try:
            return address not in ("", "::", ":") and bool(IPv6Address(address))
        except AddressValueError:
            continue
    return False


# Names below `com` and the like, and those of private networks. `in`, `me`, `run` and more are left out: "tools.run".
_DOMAINS = (
    "com|net|org|io|ai|dev|app|cloud|co|uk|de|eu|fr|ch|nl|cn|jp|kr|ru|info|biz|gov|edu|xyz|tech|example|test|invalid|"
    "internal|local|localdomain|lan|corp|intranet|home|private|svc|consul|cluster"
)
_REST = r"(?=[\w.-]*[\d*…]|[\w-]{12})[\w*.…-]*[\w*]"  # as a provider abbreviates it: sk-1***2
_ID = r"(?=[\w-]*\d)[\w-]{4,}"  # an id has a digit; "the project owner" has none
_AMOUNT = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
_CURRENCY = "[$€£¥￥₹\uff04]"

_KEYS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bBearer\s+(?P<piece>[^\s\"'\[]+)",
        rf"(?<![\w-])(?P<piece>(?:sk|pk|rk|gsk|xai|csk|hf|r8|nvapi|pplx|fw|tgp|rpa)[-_]{_REST})",
        r"(?<![\w-])(?P<piece>AIza[\w-]{10,}|eyJ[\w-]{5,}\.[\w-]+\.[\w-]*|ak-\w{10,})",
        r"(?<![\w-])(?P<piece>(?:AKIA|ASIA|dapi)[a-z0-9]{12,}|(?:gh[oprsu]|cfut|glpat)[-_][\w-]{10,})",
        r"\bapi[ _-]?key(?: provided)?\s*[:=]\s*['\"`]?(?P<piece>[^\s'\"`,.\[]{6,})",
        r"\b(?:token|secret|password|authorization)\s*[:=]\s*['\"`]?(?P<piece>(?=[^\s'\"`,;]*\d)[^\s'\"`,;.\[]{8,})",
    )
)

_OTHERS: Sequence[tuple[re.Pattern[str], str, Callable[[str], bool]]] = tuple(
    (re.compile(pattern, re.IGNORECASE), mark, is_meant)
    for pattern, mark, is_meant in (
        (r"(?P<piece>\b[a-z][a-z0-9+.-]{1,20}://(?:\[key\]|[^\s\"'<>`)\]}])+)", "[address]", _any),
        (r"(?<![\w.+-])(?P<piece>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)", "[address]", _any),
        (r"(?<![\w-])(?P<piece>org-(?!wide\b|level\b|owned\b)\w{3,}|proj_\w{3,})", "[account]", _any),
        (rf"(?<![\w-])(?P<piece>(?:org|proj|user|team|acct|ws)[-_]{_ID})", "[account]", _any),
        (r"\b(?P<piece>arn:[\w-]+:[^\s'\"`,)]+)", "[account]", _any),
        (
            r"\b(?:projects|organizations|accounts|tenants|subscriptions|resourceGroups)/(?P<piece>[\w.-]+)",
            "[account]",
            _any,
        ),
        (
            r"\b(?:account|organi[sz]ation|team)\s+(?P<piece>[\w.-]+)\s+(?:is|was|has been)\s"
            r"(?:suspended|disabled|deactivated|restricted|terminated)\b",
            "[account]",
            _any,
        ),
        (
            r"\b(?:team|organi[sz]ation|project(?:_number)?|account|tenant|subscription|workspace|api key)(?:[ _-]?id)?"
            rf"\s*[:=#]?\s*['\"`(]?(?P<piece>{_ID})",
            "[account]",
            _any,
        ),
        (r"\b(?:organi[sz]ation|project|team|account)\s+['\"`](?P<piece>[^'\"`\[]+)['\"`]", "[account]", _any),
        (r"(?<![\w.])(?P<piece>\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?)(?![\w.]*\d)", "[address]", _any),
        (r"(?<![\w:])(?P<piece>[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?::\d{5})?)(?![\w:])", "[address]", _is_ipv6),
        (
            rf"(?<![\w.-])(?P<piece>(?:[\w-]+\.)+(?:{_DOMAINS})(?:\.(?:{_DOMAINS}))*(?::\d+)?)(?![\w-])",
            "[address]",
            _any,
        ),
        (r"(?<![\w.-])(?P<piece>localhost(?::\d+)?)(?![\w-])", "[address]", _any),
        (r"(?<![\w.-])(?P<piece>(?=[\w.]*[-.])[a-z][\w.-]*(?<!code)(?<!status):\d{4,5})(?!\w)", "[address]", _any),
        # What resolvers and clients say of names without a dot or a digit, as containers have them.
        (
            r"(?:\bENOTFOUND\s|\bresolve host(?:name)?:?\s|\bhost(?:name)?\s*=)\s*['\"]?(?P<piece>[\w.-]*\w)",
            "[address]",
            _any,
        ),
        (r"\blookup (?P<piece>[\w.-]*\w)(?= on \[address\]|: no such host)", "[address]", _any),
        (
            r"\b(?:connect(?:ing|ion)? to|dial(?:ing)?|reach|host(?:name)?)\s(?:host\s)?"
            r"(?P<piece>(?!host\b)[a-z][\w.-]*:\d{2,5})(?!\w)",
            "[address]",
            _any,
        ),
        (
            r"\b(?:host(?:name)?|node|pod|worker|server|upstream)\s*[:=]?\s*['\"`]?"
            r"(?P<piece>(?=[\w.]*-)(?=[\w.-]*\d)[a-z][\w.-]*)",
            "[address]",
            _any,
        ),
        (rf"(?P<piece>(?:{_CURRENCY}|\b(?:USD|EUR|GBP|CNY|RMB)\b)\s?{_AMOUNT})", "[amount]", _any),
        (
            rf"(?<![\w.])(?P<piece>{_AMOUNT}\s?"
            rf"(?:{_CURRENCY}|(?:USD|EUR|GBP|CNY|RMB|dollars?|euros?|cents?|credits?|元)\b))",
            "[amount]",
            _any,
        ),
        (
            rf"(?:\b(?:balance|credits?|afford)|余额|额度)(?:\s+(?:is|of|left|remaining))?\s*[:\uff1a=]?\s*(?P<piece>{_AMOUNT})",
            "[amount]",
            _any,
        ),
        # A budget without a fraction may be one of tokens, which is the caller's.
        (
            r"(?<![a-z])(?:cost|budget|spen[dt])(?: for \w+)?\s*[:=]\s*(?P<piece>\d+(?:\.\d+(?:e-?\d+)?|e-\d+))",
            "[amount]",
            _any,
        ),
    )
)

"""The errors that upstreams report: which object reports one, whom it concerns, and what callers are told of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from quart_openai_sse.errors import OpenAISSEError, UpstreamCredentials, UpstreamFailed, UpstreamQuota, UpstreamRefused
from quart_openai_sse.protocol.error_shapes import Report, read_report
from quart_openai_sse.protocol.upstream_sentences import one_line, show, without_keys

NO_SENTENCE = "The upstream reported an error."

_LOGGED = 300  # characters of an upstream's sentence
_PASSED_ON = 16 << 10  # characters of members that are passed on


def reported_error(value: object) -> Any:
    """The error that a JSON value within a stream reports, for `failure_of`, or `None` if it reports none.

    Besides OpenAI's `{"error": {…}}` there are bare strings, arrays, `{"detail": …}`, `{"errors": […]}`, vLLM's
    `{"object": "error", …}`, MiniMax's `base_resp`, and flat objects with a message and a code.
    """
    if not isinstance(value, Mapping):
        if not isinstance(value, list):
            return None
        return next((error for each in value if isinstance(each, Mapping) and (error := reported_error(each))), None)
    error = value.get("error")
    if error:
        return error if isinstance(error, Mapping) else value
    base = value.get("base_resp")
    if isinstance(base, Mapping) and base.get("status_code"):
        return base
    return value if not value.get("choices") and _is_flat(value) else None


def failure_of(error: Any, *, status: int | None = None) -> OpenAISSEError:
    """The exception for an error that an upstream reports within its stream, or within an answer with status 200.

    *error* is what `reported_error` returns, or any other JSON value. *status* is the status of the error if it is
    known otherwise. The exception is an `UpstreamFailed`; an `UpstreamCredentials` about our key, an `UpstreamQuota`
    about our account's credit.
    """
    return error_of(read_report(error), cls=UpstreamFailed, status=status, place="within its stream")


class Matter(Enum):
    """What an error of an upstream is about."""

    KEY = "our key"
    QUOTA = "the credit or the quota of our account"
    CONTENT = "the content of the request or of the answer, which is the caller's"
    OTHER = "anything else, by its status"


def error_of(report: Report, *, cls: type[UpstreamRefused], status: int | None, place: str) -> OpenAISSEError:
    """The exception for an error that says *report*: a *cls*, unless it is about our key or our account.

    Its message is what callers are shown; see `show`. Without *status*, the status is the one that the error names or
    that its code means, else 502. *place* is where the error came: "(403)", "within its stream".
    """
    status = status or _status(report)
    matter = _matter(report, status)
    ours: UpstreamCredentials | UpstreamQuota
    if matter is Matter.KEY:  # the sentence may quote a part of the key
        ours = UpstreamCredentials(f"The upstream refused our key {place}.")
    elif matter is Matter.QUOTA:
        ours = UpstreamQuota(show(report.sentence).text or f"Our account's credit or quota is used up {place}.")
    else:
        return _refused(report, cls, status)
    if report.sentence:
        said = without_keys(one_line(report.sentence, _LOGGED))
        ours.withheld = (said if status is None else f"status {status}: {said}",)
    return ours


def _refused(report: Report, cls: type[UpstreamRefused], status: int | None) -> UpstreamRefused:
    shown = show(report.sentence)
    status = status or _status(report) or 502
    found = cls(
        shown.text or NO_SENTENCE,
        status=status,
        type=_name(report.type),
        code=_name(report.code),
        param=_name(report.param),
        retry_after=report.retry_after if status in (408, 429) or status >= 500 else None,
    )
    found.withheld = shown.withheld
    if status < 500 and status != 429 and len(repr(report.passed_on)) <= _PASSED_ON:
        found.passed_on = report.passed_on or None
    return found


def _name(value: str) -> str | None:
    """A code or the like, as log lines hold it too: short and printable, and without what callers are not shown."""
    return value if value.isprintable() and 0 < len(value) <= 100 and show(value).text == value else None


# Flat errors ----------------------------------------------------------------------------------------------------------

_MESSAGES = ("message", "msg", "error_msg", "error_message", "errorMessage", "Message", "title", "detail")
_CODES = ("code", "status_code", "statusCode", "error_code", "errorCode")
_FINE = frozenset({"", "0", "200", "201", "ok", "success", "succeeded"})


def _is_flat(value: Mapping[str, Any]) -> bool:
    """Whether an object without choices is itself an error."""
    kind = value.get("type")
    if value.get("object") == "error" or kind == "error" or value.get("detail") or value.get("errors"):
        return True
    if not any(isinstance(value.get(name), str) and value[name] for name in _MESSAGES):
        return False
    if any(value.get(name) for name in ("error_type", "error_code", "error_msg", "error_message", "errorMessage")):
        return True
    if isinstance(kind, str) and kind.lower().endswith(("error", "exception")):
        return True
    status = value.get("status")
    if value.get("success") is False or status in ("error", "failed") or (type(status) is int and status >= 400):
        return True
    codes = (value.get(name) for name in _CODES)
    return any(isinstance(code, str | int) and str(code).lower() not in _FINE and code is not True for code in codes)


# What an error is about -----------------------------------------------------------------------------------------------

_KEY = frozenset(
    {
        *("invalid_api_key", "authentication_error", "invalid_authentication", "invalid_authentication_error"),
        *("api_key_invalid", "unauthenticated", "unauthorized", "account_deactivated", "invalid_x_api_key"),
        *("incorrect_api_key", "api_key_expired", "organization_restricted"),
    }
)
_QUOTA = frozenset(
    {
        *("insufficient_quota", "insufficient_user_quota", "insufficient_balance", "insufficient_credits"),
        *("insufficient_credit", "insufficient_funds", "billing_not_active", "billing_hard_limit_reached"),
        *("billing_error", "payment_required", "credit_limit_exceeded", "exceeded_current_quota_error"),
        *("arrearage", "accountoverdueerror", "account_overdue", "budget_exceeded", "usage_limit_reached"),
        *("blocked_api_access", "tokens_spent"),
    }
)
_NUMBERED_QUOTA = {"1113", "30001"}  # Zhipu, SiliconFlow
_RATE = frozenset({"rate_limit_exceeded", "rate_limit_error", "resource_exhausted", "too_many_requests", "slow_down"})
_BUSY = frozenset({"overloaded_error", "server_is_overloaded", "overloaded", "unavailable"})
_CONTENT = re.compile(
    r"content[_-]?(policy|filter|moderat|violation|safety)|moderation|responsible_?ai|safety|inspection|sensitive"
    r"|prohibited_?content|guardrail|model_not_allowed|usage_policy|cyber_policy"
)
_ABOUT_CONTENT = re.compile(
    r"\b(?:moderat\w*|flagged|guidelines?|safety|content (?:policy|policies|filter\w*|management)|usage polic\w+"
    r"|(?:inappropriate|sensitive|unsafe|prohibited|harmful) (?:content|input|output|information|prompt)"
    r"|(?:prompt|content|input|output|image) (?:was |is |has been )?(?:blocked|rejected|filtered)"
    r"|violat\w+ .{0,40}(?:polic|terms|guideline)\w*|polic\w+ violation"
    r"|model (?:\S{1,80} )?(?:is )?not (?:allowed|permitted))|敏感|违规|不合规"
    r"|(?:\bnot|n't) have (?:access|permission) to (?:use |access )?(?:the |this )?model\b"
    r"|\bnot (?:allowed|authorized|permitted) to (?:use|access|invoke|sample from) (?:the |this )?model\b",
    re.IGNORECASE,
)
_OUR_ACCOUNT = re.compile(
    r".{0,30}\b(?:account|your access|organi[sz]ation|team|project|api[ -]?key)\b.{0,60}"
    r"\b(?:suspended|deactivated|disabled|banned|terminated|restricted|revoked)\b",
    re.IGNORECASE,
)
_ABOUT_QUOTA = re.compile(
    r"insufficient.{0,20}\b(?:balance|credits?|quota|funds)|\b(?:balance|credits?|quota)\b.{0,30}\binsufficient"
    r"|credit balance is too low|not enough balance"
    r"|(?:\b(?:used all|out of|not enough|no)|n't have any) .{0,20}\bcredits?\b(?! (?:were|was|have been|will be)\b)"
    r"|spending limit|payment required|billing (?:hard )?limit|余额不足|欠费|账户余额",
    re.IGNORECASE,
)
# At the beginning only: further on, a sentence about a request may quote it.
_OPENS_WITH_QUOTA = re.compile(r"your credit balance is too low|insufficient balance|余额不足|账户.{0,4}欠费", re.I)
_OPENS_WITH_KEY = re.compile(
    r"(?:incorrect|invalid) api[ _-]?key|api[ _-]?key (?:is )?(?:not valid|invalid|expired)", re.I
)


def _matter(report: Report, status: int | None) -> Matter:
    """What an error is about: by its members, and then by its words where its status leaves that open."""
    marks, said = report.marks, report.sentence
    refused = status is None or status < 500
    if status == 401:
        spent = marks & _QUOTA or _ABOUT_QUOTA.search(said)
        return Matter.QUOTA if spent else Matter.KEY
    if status == 402:
        return Matter.QUOTA
    if refused and (report.flagged or any(_CONTENT.search(mark) for mark in marks)):
        return Matter.CONTENT
    if marks & _QUOTA or (refused and (marks & _NUMBERED_QUOTA and status in (None, 403, 429))):
        return Matter.QUOTA
    if status == 403 and ("model_not_found" in marks or _ABOUT_CONTENT.search(said)):
        # A suspended account is ours, whichever caller's requests were the reason.
        return Matter.KEY if _OUR_ACCOUNT.match(said) else Matter.CONTENT
    if status in (403, 412, 429) and _ABOUT_QUOTA.search(said):
        return Matter.QUOTA
    if status == 403 or (refused and (marks & _KEY or _OPENS_WITH_KEY.match(said.lstrip()))):
        return Matter.KEY
    return Matter.QUOTA if refused and _OPENS_WITH_QUOTA.match(said.lstrip()) else Matter.OTHER


def _status(report: Report) -> int | None:
    """The status that an error names, or that its code means."""
    if report.status is not None:
        return report.status
    if report.flagged or any(_CONTENT.search(mark) for mark in report.marks):
        return 400
    if "model_not_found" in report.marks:
        return 404
    if report.marks & _RATE:
        return 429
    return 503 if report.marks & _BUSY else None

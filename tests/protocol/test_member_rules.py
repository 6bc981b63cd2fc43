"""Which members of a request are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quart_openai_sse.errors import InvalidRequest
from quart_openai_sse.protocol.member_rules import GATEWAY_MEMBERS, MemberRules

BODY: dict[str, Any] = {"model": "m", "messages": [], "stream": True, "stream_options": {}}


def refused(body: dict[str, Any], *, allowed: Any = None, denied: Any = ()) -> str | None:
    """The name of the member for which *body* is refused."""
    try:
        MemberRules(allowed=allowed, denied=denied).check({**BODY, **body}, sent={**BODY, **body})
    except InvalidRequest as error:
        return error.param
    return None


@pytest.mark.parametrize("name", sorted(GATEWAY_MEMBERS))
def test_what_redirects_a_gateway_is_refused_unless_it_is_allowed(name: str) -> None:
    assert refused({name: "x"}) == name
    assert refused({"extra_body": {name: "x"}}) == f"extra_body.{name}"
    assert refused({name: "x"}, allowed=[name]) is None
    assert refused({"extra_body": {name: "x"}}, allowed=[name, "extra_body"]) is None
    assert refused({name: "x", "anything": 1}, allowed=["*", name]) is None
    assert refused({name: "x"}, allowed=["*"]) == name
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
        ({"extra_body": {"extra_body": {"n": 1}}}, {"denied": ["n"]}, "extra_body.extra_body.n"),
        ({"n": 1, "*": 1}, {"allowed": ["*"]}, None),
        ({"n": 1}, {"allowed": ["*"], "denied": ["n"]}, "n"),
        ({"metadata": {"user": "u", "n": 1, "headers": "x", "tenant_id": "t"}}, {"denied": ["n"]}, None),
    ],
)
def test_members_are_allowed_and_denied_by_name(body: Any, rules: Any, expected: str | None) -> None:
    assert refused(body, **rules) == expected


BANNED_BY_LITELLM = """
api_base base_url user_config aws_sts_endpoint aws_web_identity_token aws_role_name aws_bedrock_runtime_endpoint
vertex_credentials s3_endpoint_url sagemaker_base_url deployment_url azure_ad_token model_list aws_profile_name
aws_bedrock_project_id nvcf_function_id use_ssl input_cost_per_token output_cost_per_second
cache_read_input_token_cost cache_creation_input_token_cost
"""
LOGS = """
langfuse_public_key langfuse_secret langfuse_secret_key langfuse_host langsmith_api_key langsmith_project
langsmith_base_url langsmith_tenant_id humanloop_api_key arize_api_key arize_space_key arize_space_id posthog_api_key
posthog_host posthog_api_url braintrust_api_key braintrust_project braintrust_host slack_webhook_url lunary_public_key
dd_api_key dd_site dd_agent_host dd_agent_port turn_off_message_logging gcs_bucket_name gcs_path_service_account
phoenix_project_name phoenix_project_name_override wandb_api_key weave_project_id
"""


def test_what_litellms_proxy_bans_is_denied() -> None:
    azure = ["azure_username", "azure_password", "client_secret", "tenant_id"]
    assert GATEWAY_MEMBERS.issuperset([*BANNED_BY_LITELLM.split(), *LOGS.split(), *azure])
    # They describe a request that is logged, and direct nothing.
    assert GATEWAY_MEMBERS.isdisjoint(["langfuse_prompt_version", "langsmith_sampling_rate", "metadata", "user"])


@pytest.mark.parametrize("container", ["metadata", "litellm_metadata"])
@pytest.mark.parametrize("name", LOGS.split())
def test_what_directs_a_gateways_log_is_refused_in_metadata(container: str, name: str) -> None:
    metadata = {"user": "u", name: "x"}
    assert refused({container: metadata}) == f"{container}.{name}"
    assert refused({container: json.dumps(metadata)}) == f"{container}.{name}"
    assert refused({"extra_body": {container: metadata}}) == f"extra_body.{container}.{name}"
    assert refused({container: metadata}, allowed=["*", name]) is None
    assert refused({container: {name: None}}) is None


@pytest.mark.parametrize("text", ["", "words", "[1]", "7", "{", '{"user": "u"}', '{"a": NaN}'])
def test_metadata_may_be_text(text: str) -> None:
    assert refused({"metadata": text}) is None


HIDDEN = {
    "half an emoji": ('{"langfuse_host": "x", "b": "\\ud800"}', "metadata.langfuse_host"),
    "no JSON to others than Python": ('{"langfuse_host": "x", "b": NaN}', "metadata.langfuse_host"),
    "nested deeply": ('{"langfuse_host": "x", "b": ' + "[" * 200 + "]" * 200 + "}", "nested more than 100 levels"),
    "nested more deeply than it can be read": ('{"langfuse_host": "x", "b": ' + "[" * 200_000, "metadata is nested"),
}


@pytest.mark.parametrize(("text", "expected"), HIDDEN.values(), ids=HIDDEN)
def test_metadata_as_text_cannot_hide_a_member(text: str, expected: str) -> None:
    body = {**BODY, "metadata": text}
    with pytest.raises(InvalidRequest, match=expected):
        MemberRules(allowed=None, denied=()).check(body, sent=body)


BY_A_HOOK: dict[str, tuple[Any, Any, str | None]] = {
    "added": ({}, {"extra_headers": {"X": "1"}}, None),
    "added with extra_body": ({}, {"extra_body": {"api_base": "http://a"}}, None),
    "added beside the same value elsewhere": ({"user": "a"}, {"api_key": "a"}, None),
    "removed": ({"api_base": "e"}, {}, None),
    "replaced": ({"api_base": "e"}, {"api_base": "a"}, None),
    "replaced, whole": ({"extra_headers": {"X": "e"}}, {"extra_headers": {"X": "1"}}, None),
    "kept": ({"api_base": "e"}, {"api_base": "e"}, "api_base"),
    "kept, empty": ({"model_list": []}, {"model_list": []}, "model_list"),
    "an empty one filled": ({"extra_headers": {}}, {"extra_headers": {"X": "1"}}, None),
    "added to": ({"extra_headers": {"A": "e"}}, {"extra_headers": {"A": "e", "X": "1"}}, "extra_headers"),
    "added to, in lower case": (
        {"extra_headers": {"A": "e"}},
        {"extra_headers": {"a": "e", "X": "1"}},
        "extra_headers",
    ),
    "added to a list": ({"fallbacks": ["e"]}, {"fallbacks": ["m", "e"]}, "fallbacks"),
    "changed within": ({"user_config": {"a": [{"b": 1, "c": 2}]}}, {"user_config": {"a": [{"b": 1}]}}, "user_config"),
    "merged": ({"extra_body": {"api_base": "e"}}, {"api_base": "e"}, "api_base"),
    "merged from any member": ({"x": [{"y": {"api_base": "e"}}]}, {"api_base": "e"}, "api_base"),
    "put into extra_body": ({"api_base": "e"}, {"extra_body": {"api_base": "e"}}, "extra_body.api_base"),
    "parsed": ({"metadata": '{"dd_site": "e"}'}, {"metadata": {"dd_site": "e"}}, "metadata.dd_site"),
    "a null replaced": ({"api_base": None}, {"api_base": "a"}, None),
}


@pytest.mark.parametrize(("sent", "made", "expected"), BY_A_HOOK.values(), ids=BY_A_HOOK)
def test_what_a_hook_adds_passes_and_what_the_caller_has_sent_does_not(
    sent: Any, made: Any, expected: str | None
) -> None:
    rules = MemberRules(allowed=None, denied=())
    if expected is None:
        rules.check({**BODY, **made}, sent={**BODY, **sent})
    else:
        with pytest.raises(InvalidRequest) as refusal:
            rules.check({**BODY, **made}, sent={**BODY, **sent})
        assert refusal.value.param == expected


def test_what_a_hook_adds_needs_not_be_on_the_list_of_allowed_members() -> None:
    rules = MemberRules(allowed=["seed"], denied=())
    rules.check({**BODY, "user": "ann"}, sent=BODY)
    rules.check({**BODY, "user": "ann"}, sent={**BODY, "user": "bob"})
    with pytest.raises(InvalidRequest):
        rules.check({**BODY, "user": "bob"}, sent={**BODY, "user": "bob"})

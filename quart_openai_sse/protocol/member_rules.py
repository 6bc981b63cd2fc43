"""Which members of a caller's request are sent upstream: those that would redirect a gateway are refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from quart_openai_sse.errors import InvalidRequest
from quart_openai_sse.protocol.requests import check_nesting

# The names are those that LiteLLM's proxy refuses, and others that it reads, as of: `_BANNED_REQUEST_BODY_PARAMS` in
# litellm/proxy/auth/auth_utils.py (May 2026, and its tests of 2026, which name later ones), the lists in
# litellm_core_utils/initialize_dynamic_callback_params.py (commit 05bac28), and `all_litellm_params` in types/utils.py.
# Prices are on its list because they change the costs that the gateway counts for all callers.
_PLACES = {
    *("api_base", "base_url", "custom_llm_provider", "deployment_url", "sagemaker_base_url", "s3_endpoint_url"),
    *("aws_bedrock_runtime_endpoint", "aws_sts_endpoint", "aws_region_name", "nvcf_function_id", "use_ssl"),
    *("ssl_verify", "vertex_location", "vertex_ai_location", "oci_region"),
}
_CREDENTIALS = {
    *("api_key", "headers", "extra_headers", "provider_specific_header", "litellm_credential_name"),
    *("azure_ad_token", "azure_username", "azure_password", "azure_scope", "client_id", "client_secret", "tenant_id"),
    *("vertex_credentials", "vertex_ai_credentials", "vertex_project", "vertex_ai_project"),
    *("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_web_identity_token", "aws_role_name"),
    *("aws_session_name", "aws_profile_name", "aws_external_id", "aws_bedrock_project_id"),
    *("oci_user", "oci_fingerprint", "oci_tenancy", "oci_key", "oci_key_file", "oci_compartment_id"),
}
_PLACES_AND_CREDENTIALS = {
    *("user_config", "model_list", "litellm_params", "litellm_params_template", "litellm_embedding_config"),
    *("fallbacks", "context_window_fallbacks", "context_window_fallback_dict", "content_policy_fallbacks"),
}
_LOGS = {
    *("langfuse_public_key", "langfuse_secret", "langfuse_secret_key", "langfuse_host"),
    *("langsmith_api_key", "langsmith_project", "langsmith_base_url", "langsmith_tenant_id"),
    *("arize_api_key", "arize_space_key", "arize_space_id", "posthog_api_key", "posthog_host", "posthog_api_url"),
    *("phoenix_project_name", "phoenix_project_name_override", "wandb_api_key", "weave_project_id"),
    *("braintrust_api_key", "braintrust_project", "braintrust_host", "humanloop_api_key", "lunary_public_key"),
    *("dd_api_key", "dd_site", "dd_agent_host", "dd_agent_port", "gcs_bucket_name", "gcs_path_service_account"),
    *("slack_webhook_url", "turn_off_message_logging", "litellm_disabled_callbacks"),
}
"""Where a gateway sends its log of the request, with which credentials, and whether it does."""
_PRICES = {
    *(f"{way}_cost_per_{unit}" for way in ("input", "output") for unit in ("token", "second", "pixel", "character")),
    *(f"{way}_cost_per_{unit}" for way in ("input", "output") for unit in ("image", "query", "audio_token")),
    *(f"{way}_cost_per_token_{kind}" for way in ("input", "output") for kind in ("flex", "priority", "batches")),
    *("cache_creation_input_token_cost", "cache_read_input_token_cost", "output_cost_per_reasoning_token"),
    *("search_context_cost_per_query", "citation_cost_per_token", "tiered_pricing", "base_model"),
}

GATEWAY_MEMBERS = frozenset().union(_PLACES, _CREDENTIALS, _PLACES_AND_CREDENTIALS, _LOGS, _PRICES)
"""The members by which LiteLLM's proxy, and gateways built on it, send a request or its log to another server or with
other credentials, or count another price: a caller could send the gateway's key, and with it the app's budget, wherever
it likes."""

ANY = "*"
"""In `allowed_members`: all members that are not denied."""
# SDKs send stream_options without being asked, and the extension sets it itself.
_ALWAYS_ALLOWED = frozenset({"model", "messages", "stream", "stream_options"})
_MERGED = "extra_body"  # LiteLLM merges its members into the request
_METADATA = ("metadata", "litellm_metadata")  # LiteLLM reads from them where to send its log


class MemberRules:
    """The members that a caller's request may have: those in *allowed* (`None`: any), without those in *denied*.

    `GATEWAY_MEMBERS` are denied too, unless *allowed* names them. If *allowed* has `ANY`, it allows all others.
    """

    def __init__(self, *, allowed: Collection[str] | None, denied: Collection[str]) -> None:
        named = frozenset(allowed or ())
        self.allowed = None if allowed is None or ANY in named else named | _ALWAYS_ALLOWED
        self.denied = (GATEWAY_MEMBERS - named).union(denied)
        self._denied_in_metadata = self.denied & _LOGS
        self._suspects = self.denied.union(_METADATA, {_MERGED})

    def check(self, body: Mapping[str, Any], *, sent: Mapping[str, Any]) -> None:
        """Raises `InvalidRequest`, whose `param` names the member, if *body* has one that the caller may not send.

        *sent* is the caller's request, and *body* what the app's hooks have made of it. A member that a hook has added
        passes, unless it holds anything that the caller has sent in a member of that name, at any depth.

        A member that is `null` counts as missing. Within `extra_body`, denied members are refused as well, and within
        `metadata` and `litellm_metadata` those that direct a gateway's log.
        """
        if self.allowed is None and self._suspects.isdisjoint(body):  # the ordinary case
            return
        for place, name, value in self._refused(body):
            if _holds(value, name, sent):
                raise _refusal(place)

    def _refused(self, body: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
        """The members that a caller may not send: each one's place, its name and its value."""
        for name, value in body.items():
            if value is not None and self.allowed is not None and name not in self.allowed:
                yield name, name, value
        yield from self._denied(body)

    def _denied(self, body: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str, Any]]:
        for name, value in body.items():
            if value is None:
                continue
            if name in self.denied:
                yield place + name, name, value
            elif name == _MERGED and isinstance(value, Mapping):
                yield from self._denied(value, f"{place}{name}.")
            elif name in _METADATA and isinstance(data := _parsed(name, value), Mapping):
                for inner in self._denied_in_metadata.intersection(data):
                    if data[inner] is not None:
                        yield f"{place}{name}.{inner}", inner, data[inner]


def _holds(value: Any, name: str, sent: Mapping[str, Any]) -> bool:
    """Whether *value*, of a member *name*, holds anything that *sent* has in a member of that name at any depth.

    A hook may move what a caller has sent, or add to it: `body.setdefault("extra_headers", {})["X-Tenant"] = "acme"`.
    """
    own = set(_leaves(name, value))
    return any(not own.isdisjoint(_leaves(name, each)) for each in _members_named(name, sent))


def _members_named(name: str, value: Any) -> Iterator[Any]:
    """The values of all members *name* within *value*."""
    if isinstance(value, Mapping):
        for each, inner in value.items():
            if each == name:
                yield inner
            yield from _members_named(name, _parsed(each, inner))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _members_named(name, each)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values within *value* that have no members, each with the name of the member that it is in."""
    if isinstance(value, Mapping) and value:
        for each, inner in value.items():
            yield from _leaves(str(each), inner)
    elif isinstance(value, list | tuple) and value:
        for each in value:
            yield from _leaves(name, each)
    else:  # names of headers may be in either case
        yield name.casefold(), value if isinstance(value, str | int | float) else repr(value)


def _parsed(name: str, value: Any) -> Any:
    """*value*, or for metadata as text, which LiteLLM parses, the JSON value in it.

    Raises `InvalidRequest` for JSON that is nested too deeply.
    """
    if name not in _METADATA or not isinstance(value, str):
        return value
    try:
        data = json.loads(value)  # by the same parser as LiteLLM, so that both read the same
        check_nesting({name: data})
    except RecursionError:
        raise InvalidRequest(f"{name} is nested too deeply.", param=name) from None
    except ValueError:
        return value
    return data


def _refusal(name: str) -> InvalidRequest:
    shown = name if len(name) <= 100 and name.isprintable() else ascii(name[:100])
    return InvalidRequest(f"A request must not have the member {shown}.", param=shown)

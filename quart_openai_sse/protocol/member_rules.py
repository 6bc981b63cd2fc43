"""Which members of a request are sent upstream: those that would redirect it are refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from quart_openai_sse.errors import InvalidRequest

GATEWAY_MEMBERS = frozenset(
    {
        # where the request goes
        *("api_base", "base_url", "custom_llm_provider", "deployment_url", "sagemaker_base_url"),
        *("s3_endpoint_url", "aws_bedrock_runtime_endpoint", "aws_sts_endpoint"),
        # with which credentials
        *("api_key", "azure_ad_token", "vertex_credentials", "litellm_credential_name", "headers", "extra_headers"),
        *("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_web_identity_token"),
        *("aws_role_name", "aws_profile_name"),
        # both
        *("user_config", "model_list", "fallbacks", "litellm_params", "litellm_params_template"),
    }
)
"""The members by which LiteLLM's proxy, and gateways built on it, send a request to another server or with other
credentials: a caller could send the gateway's key, and with it the app's budget, wherever it likes."""

# SDKs send stream_options without being asked, and the extension sets it itself.
_ALWAYS_ALLOWED = frozenset({"model", "messages", "stream", "stream_options"})
_MERGED = "extra_body"  # LiteLLM merges its members into the request


class MemberRules:
    """The members that a request may have: those in *allowed* (`None`: any), without those in *denied*.

    `GATEWAY_MEMBERS` are denied too, unless *allowed* names them. `check` need not be called if *allowed* is `None` and
    no name in `suspects` is in the body.
    """

    def __init__(self, *, allowed: Collection[str] | None, denied: Collection[str]) -> None:
        self.allowed = None if allowed is None else _ALWAYS_ALLOWED.union(allowed)
        self.denied = (GATEWAY_MEMBERS - set(allowed or ())).union(denied)
        self.suspects = self.denied | {_MERGED}

    def check(self, body: Mapping[str, Any]) -> None:
        """Raises `InvalidRequest`, whose `param` names the member, if *body* has one that it may not have.

        A member that is `null` counts as missing. Within `extra_body`, denied members are refused as well.
        """
        for name, value in body.items():
            if value is None:
                continue
            if name in self.denied or (self.allowed is not None and name not in self.allowed):
                raise _refusal(name)
            if name == _MERGED and isinstance(value, Mapping):
                for inner in value:
                    if inner in self.denied and value[inner] is not None:
                        raise _refusal(f"{_MERGED}.{inner}")


def _refusal(name: str) -> InvalidRequest:
    shown = name if len(name) <= 100 and name.isprintable() else ascii(name[:100])
    return InvalidRequest(f"A request must not have the member {shown}.", param=shown)

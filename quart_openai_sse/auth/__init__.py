"""The auth hooks that need no extra; `jwt_bearer` is in `quart_openai_sse.auth.jwt`."""

from quart_openai_sse.auth.authentication import Authenticate
from quart_openai_sse.auth.forward import forward_auth
from quart_openai_sse.auth.hooks import (
    allow_anonymous,
    bearer_tokens,
    first_of,
    on_behalf_of,
    quart_auth_user,
)
from quart_openai_sse.auth.sessions import session_user
from quart_openai_sse.principal import Principal

__all__ = [
    "Authenticate",
    "Principal",
    "allow_anonymous",
    "bearer_tokens",
    "first_of",
    "forward_auth",
    "on_behalf_of",
    "quart_auth_user",
    "session_user",
]

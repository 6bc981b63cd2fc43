"""Who may log in. A real app has a database for that."""

from __future__ import annotations

import hmac
import secrets

DEMO_ACCOUNTS = {"ada": "lovelace", "grace": "hopper"}


def password_is_right(name: str, password: str) -> bool:
    """Whether *name* may log in with *password*."""
    expected = DEMO_ACCOUNTS.get(name, secrets.token_hex())
    return hmac.compare_digest(expected.encode(), password.encode())

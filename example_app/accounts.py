"""Who may log in, and what they have said so far. A real app has a database for both."""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

DEMO_ACCOUNTS = {"ada": "lovelace", "grace": "hopper"}
_MOST_CONVERSATIONS = 1000


def password_is_right(name: str, password: str) -> bool:
    """Whether *name* may log in with *password*."""
    expected = DEMO_ACCOUNTS.get(name, secrets.token_hex())
    return hmac.compare_digest(expected.encode(), password.encode())


@dataclass
class Conversation:
    """One user's conversation: what was asked and answered, as the page shows it."""

    thread: str = field(default_factory=lambda: f"chat:{secrets.token_hex(8)}")
    messages: list[dict[str, Any]] = field(default_factory=list)

    def for_model(self) -> list[dict[str, Any]]:
        """The messages as a model wants them: answers that came to nothing are left out."""
        return [
            {"role": message["role"], "content": message["content"]} for message in self.messages if message["content"]
        ]


class Conversations:
    """The present conversation of each user, in memory."""

    def __init__(self) -> None:
        self._by_user: OrderedDict[str, Conversation] = OrderedDict()

    def of(self, user: str) -> Conversation:
        """The user's conversation; a new one for who has none."""
        conversation = self._by_user.setdefault(user, Conversation())
        self._by_user.move_to_end(user)
        if len(self._by_user) > _MOST_CONVERSATIONS:
            self._by_user.popitem(last=False)
        return conversation

    def reset(self, user: str) -> Conversation:
        """Forgets the user's conversation and begins another."""
        self._by_user.pop(user, None)
        return self.of(user)

"""The tables of the old app: who may log in, and what was said."""

from __future__ import annotations

import secrets
from functools import cache

from flask_login import UserMixin  # type: ignore[import-untyped]
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey, String, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from werkzeug.security import check_password_hash, generate_password_hash


class Base(DeclarativeBase):
    """What the tables have in common."""


db = SQLAlchemy(model_class=Base)


class User(UserMixin, Base):  # type: ignore[misc]
    """Somebody with a password."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    password_hash: Mapped[str] = mapped_column(String(255))
    locked: Mapped[bool] = mapped_column(default=False)
    messages: Mapped[list[Message]] = relationship(order_by="Message.id", back_populates="user")

    def __init__(self, *, name: str, password: str) -> None:
        super().__init__(name=name, password_hash=generate_password_hash(password))

    @property
    def is_active(self) -> bool:
        """For Flask-Login: whether the user may log in."""
        return not self.locked

    def conversation(self) -> list[dict[str, str]]:
        """What was said, as a model wants it: answers that came to nothing are left out."""
        return [{"role": each.role, "content": each.content} for each in self.messages if each.content]

    @classmethod
    def named(cls, name: str) -> User | None:
        """The user of this name."""
        return db.session.scalar(select(cls).where(cls.name == name))


def password_is_right(user: User | None, password: str) -> bool:
    """Whether *user* has this *password*. It takes as long without a user, or the time would tell which names exist."""
    is_right = check_password_hash(_nobodys_hash() if user is None else user.password_hash, password)
    return is_right and user is not None


@cache
def _nobodys_hash() -> str:
    return generate_password_hash(secrets.token_hex())


class Message(Base):
    """A question or an answer."""

    __tablename__ = "messages"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    role: Mapped[str] = mapped_column(String(20))
    content: Mapped[str] = mapped_column(Text)
    outcome: Mapped[str] = mapped_column(String(20), default="")
    user: Mapped[User] = relationship(back_populates="messages")

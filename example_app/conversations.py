"""What was asked and answered, kept in SQLite: conversations, each with an owner and its messages."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import JSON, URL, ColumnElement, ForeignKey, and_, create_engine, delete, event, exists, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from example_app.text import storable
from quart_openai_sse.errors import RequestError

T = TypeVar("T")


class ConversationNotFound(RequestError):
    """There is no such conversation, or it is not the caller's."""

    status = 404
    code = "conversation_not_found"
    user_message = "This conversation does not exist, or it was deleted."


class DatabaseUnusable(Exception):
    """The file can't be opened, or it is no database."""


class Base(DeclarativeBase):
    """What the tables have in common."""


class Conversation(Base):
    """One user's conversation."""

    __tablename__ = "conversations"

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: secrets.token_hex(8))
    owner: Mapped[str] = mapped_column(index=True)
    title: Mapped[str]
    created: Mapped[float] = mapped_column(default=time.time)
    updated: Mapped[float] = mapped_column(default=time.time)
    messages: Mapped[list[Message]] = relationship(order_by="Message.id")

    def summary(self) -> dict[str, Any]:
        """What a list of conversations shows."""
        return {"id": self.id, "title": self.title, "created": self.created, "updated": self.updated}

    def for_model(self) -> list[dict[str, Any]]:
        """The messages as a model wants them: answers that came to nothing are left out."""
        return [{"role": message.role, "content": message.content} for message in self.messages if message.content]


class Message(Base):
    """A question, or an answer with how it ended."""

    __tablename__ = "conversation_messages"  # "messages" is the Flask app's, which may live in the same file

    id: Mapped[int] = mapped_column(primary_key=True)
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"), index=True)
    role: Mapped[str]
    content: Mapped[str]
    reasoning: Mapped[str] = mapped_column(default="")
    sources: Mapped[list[Any]] = mapped_column(JSON, default=list)
    outcome: Mapped[str] = mapped_column(default="")
    note: Mapped[str] = mapped_column(default="")
    stream: Mapped[str] = mapped_column(default="")
    """The stream that wrote it: so a page knows the answer that it has followed."""

    def as_dict(self) -> dict[str, Any]:
        """The message as a page shows it."""
        names = ("id", "role", "content", "reasoning", "sources", "outcome", "note", "stream")
        return {name: getattr(self, name) for name in names}


class Conversations:
    """Everybody's conversations, in one SQLite file: a stranger's does not exist for an *owner*.

    Raises `DatabaseUnusable` for a file that can't be opened.
    """

    def __init__(self, file: str | Path) -> None:
        _create_tables(Path(file))
        self._engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(file)))
        event.listen(self._engine.sync_engine, "connect", _obey_foreign_keys)
        self._session = async_sessionmaker(self._engine, expire_on_commit=False)

    async def close(self) -> None:
        """Closes its connections."""
        await self._engine.dispose()

    async def of(self, owner: str) -> Sequence[Conversation]:
        """The owner's conversations without their messages, the last one used first."""
        async with self._session() as session:
            newest = (Conversation.updated.desc(), Conversation.id)
            return (await session.scalars(select(Conversation).filter_by(owner=owner).order_by(*newest))).all()

    async def get(self, conversation_id: str, *, owner: str) -> Conversation:
        """A conversation with its messages. Raises `ConversationNotFound`, as whatever takes an id."""
        async with self._session() as session:
            query = select(Conversation).where(_is(conversation_id, owner)).options(selectinload(Conversation.messages))
            conversation = await session.scalar(query)
        return _found(conversation, conversation_id)

    async def ask(self, question: str, *, owner: str, conversation_id: str = "") -> Conversation:
        """Adds *question* to a conversation, or begins one with it. The conversation, whose last message it is."""
        if conversation_id:
            await self.add(conversation_id, owner=owner, role="user", content=question)
            return await self.get(conversation_id, owner=owner)
        asked = Message(role="user", content=storable(question))
        conversation = Conversation(owner=owner, title=_first_words(asked.content), messages=[asked])
        async with self._session.begin() as session:
            session.add(conversation)
        return conversation

    async def add(self, conversation_id: str, *, owner: str, **message: Any) -> None:
        """Adds a message of these columns, in place of an answer of the same stream.

        `on_end` runs twice for a stream if a worker dies while it runs.
        """
        columns = {name: storable(value) if isinstance(value, str) else value for name, value in message.items()}
        added = Message(conversation_id=conversation_id, **columns)
        await self._update(conversation_id, owner, added, updated=time.time())

    async def rename(self, conversation_id: str, title: str, *, owner: str) -> None:
        """Gives it another title."""
        await self._update(conversation_id, owner, title=storable(title))

    async def delete(self, conversation_id: str, *, owner: str) -> None:
        """Forgets it, with its messages."""
        async with self._session.begin() as session:
            query = delete(Conversation).where(_is(conversation_id, owner)).returning(Conversation.id)
            _found(await session.scalar(query), conversation_id)

    async def withdraw(self, question: Message) -> None:
        """Takes back a question that was not accepted, and its conversation if it was the only message."""
        mine = Message.conversation_id == question.conversation_id
        async with self._session.begin() as session:
            await session.execute(delete(Message).where(Message.id == question.id))
            empty = ~exists().where(mine)
            await session.execute(delete(Conversation).where(Conversation.id == question.conversation_id, empty))

    async def _update(self, conversation_id: str, owner: str, *added: Message, **values: Any) -> None:
        async with self._session.begin() as session:
            query = update(Conversation).where(_is(conversation_id, owner)).values(**values).returning(Conversation.id)
            _found(await session.scalar(query), conversation_id)
            for stream in [message.stream for message in added if message.stream]:
                await session.execute(delete(Message).filter_by(conversation_id=conversation_id, stream=stream))
            session.add_all(added)


def _is(conversation_id: str, owner: str) -> ColumnElement[bool]:
    return and_(Conversation.id == conversation_id, Conversation.owner == owner)


def _found(conversation: T | None, conversation_id: str) -> T:
    if conversation is None:
        raise ConversationNotFound(f"There is no conversation {conversation_id!r}.")
    return conversation


def _first_words(text: str, most: int = 60) -> str:
    words = " ".join(text.split())
    if len(words) <= most:
        return words
    return f"{words[:most].rpartition(' ')[0] or words[:most]} …"


def _create_tables(file: Path) -> None:
    engine = create_engine(URL.create("sqlite", database=str(file)))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        Base.metadata.create_all(engine)
    except OSError as error:
        raise DatabaseUnusable(f"{file}: {error.strerror}") from error
    except DBAPIError as error:
        raise DatabaseUnusable(f"{file}: {error.orig}") from error
    finally:
        engine.dispose()


def _obey_foreign_keys(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")  # SQLite forgets it with every connection
    cursor.close()

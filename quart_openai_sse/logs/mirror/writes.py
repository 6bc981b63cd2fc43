"""What the store is given of a stream: its beginning, its batches, its end."""

from __future__ import annotations

from msgspec import structs

from quart_openai_sse.config import Config
from quart_openai_sse.logs.entries import About, End
from quart_openai_sse.logs.mirror import NewStream, Write
from quart_openai_sse.logs.mirror.own import OwnStream
from quart_openai_sse.logs.mirror.wire import Wire


class Writes:
    """Makes the arguments of `Store.create` and `Store.write`."""

    def __init__(self, wire: Wire, config: Config) -> None:
        self._wire = wire
        self._retention = config.retention
        self._tombstone = config.tombstone
        self._life = config.max_duration + config.retention + config.tombstone + 60

    def new_stream(self, writer: str, digest: str, about: About) -> NewStream:
        """What the store is told of a stream."""
        return NewStream(
            writer=writer,
            digest=digest,
            about=self._wire.about(about),
            owner=about.owner,
            created=about.created,
            life=self._life,
        )

    def next(self, stream: OwnStream) -> Write:
        """What is to be written next of a stream."""
        place = stream.written
        count, batch = self._batch(stream, place) if place < stream.last else (place, b"")
        write = Write(
            key=stream.key,
            writer=stream.writer,
            place=place,
            count=count,
            batch=batch,
            request=b"" if stream.is_kept or not stream.request else self._wire.blob(stream.request),
        )
        if write.count < stream.last:
            return write
        if stream.end is not None:
            return self.with_end(write, stream.end)
        if stream.decided is not None and not stream.is_decided:
            return structs.replace(write, decided=self._wire.end(stream.decided, write.count))
        return write

    def with_end(self, write: Write, end: End) -> Write:
        """*write* with an end."""
        return structs.replace(
            write,
            end=self._wire.end(end, write.count),
            retention=self._retention,
            tombstone=self._tombstone,
            holds_key=write.count > 0 or end.outcome != "failed",
        )

    def _batch(self, stream: OwnStream, place: int) -> tuple[int, bytes]:
        """The entries from *place* on, and how many there are up to their end."""
        if (runs := stream.runs(place)) is not None:
            return place + sum(len(run.pieces) for run in runs), self._wire.batch_of_runs(place + 1, runs)
        entries = stream.take(place)
        return place + len(entries), self._wire.batch(place + 1, entries)

"""A version reads what the one before has stored, and takes what a newer one has stored for what it is.

Workers of two versions share a store while an app is deployed. The bytes of `STORED` and `SENT` are those of version 1
of the format: a later version of the package must read them too, so they are never changed, only added to.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from msgspec import msgpack

from quart_openai_sse.errors import ErrorValue, LogUnavailable, StreamTooLong
from quart_openai_sse.logs.compact import Run
from quart_openai_sse.logs.entries import About, End, Entry, Kind
from quart_openai_sse.logs.mirror.wire import (
    HEADER,
    Answer,
    Erased,
    Flush,
    Forgotten,
    Joined,
    Left,
    Message,
    Stop,
    Who,
    Wire,
    encode_message,
    read_message,
)
from quart_openai_sse.principal import Principal
from quart_openai_sse.relay.stored_requests import decode_request


def turned(data: bytes) -> bytes:
    return bytes(byte ^ 0x5A for byte in data)


WIRE = Wire((turned, turned))
PLAIN = Wire()

ENTRIES = [
    Entry(b'{"a":1}', 1.5),
    Entry(b'{"u":2}', 2.0, usage=True),
    Entry(b'{"m":3}', 2.5, kind=Kind.MESSAGE),
    Entry(b'{"w":4}', 3.0, kind=Kind.ANSWER),
    Entry(b'{"e":5}', 3.5, kind=Kind.EVENT, name="tool"),
]
RUNS = [Run(b'{"a":"', b'"}', [b"x", b"yz"], [1.5, 2.25]), Run(b"", b"", [b"[]"], [3.0])]
COMPLETED = End("completed", finish_reasons={0: "stop", 1: "length"}, usage={"total_tokens": 3})
FAILED = End("failed", "stream_too_long", ErrorValue.of(StreamTooLong("Too long.")))
LARGE = End("stopped", "enough", usage={"total_tokens": 2**70})
ABOUT = About(id="s1", owner="o1", thread="t", model="m", created=1700000000.5, n=2, echo=b"{}")

STORED = {
    "entries": (
        WIRE.read_batch,
        "0000000700000005009592c4077b2261223a317dcb3ff800000000000095c4077b2275223a327dcb4000000000000000c300a095c4077b22"
        "6d223a337dcb4004000000000000c201a095c4077b2277223a347dcb4008000000000000c202a095c4077b2265223a357dcb400c00000000"
        "0000c203a4746f6f6c",
        (7, ENTRIES),
    ),
    "runs": (
        WIRE.read_batch,
        "0000000200000003089294c4067b2261223a22c402227d92c40178c402797a92cb3ff8000000000000cb400200000000000094c400c40091"
        "c4025b5d91cb4008000000000000",
        (2, [Entry(b'{"a":"x"}', 1.5), Entry(b'{"a":"yz"}', 2.25), Entry(b"[]", 3.0)]),
    ),
    "compressed": (
        WIRE.read_batch,
        "00000001000000010178019b38e928fb8d6aa544252ba58a51301a02a321301a02a321301a02a32130e44340a9f6b4fd0706300000cb88b0"
        "8a",
        (1, [Entry(b'{"a":"%s"}' % (b"x" * 2000), 1.0)]),
    ),
    "sealed": (
        WIRE.read_batch,
        "000000010000000102cbc89e5d21783b78606b279165a25a5a5a5a5a5a",
        (1, [Entry(b'{"a":1}', 1.5)]),
    ),
    "a completed end": (
        WIRE.read_end,
        "ff000000090085a76f7574636f6d65a9636f6d706c65746564a6726561736f6ea0a56572726f72c0ae66696e6973685f726561736f6e7382"
        "00a473746f7001a66c656e677468a5757361676581ac746f74616c5f746f6b656e7303",
        (COMPLETED, 9),
    ),
    "a failed end": (
        WIRE.read_end,
        "ff000000090085a76f7574636f6d65a66661696c6564a6726561736f6eaf73747265616d5f746f6f5f6c6f6e67a56572726f728aa46e616d"
        "65d92571756172745f6f70656e61695f7373652e6572726f72732e53747265616d546f6f4c6f6e67a76d657373616765a9546f6f206c6f6e"
        "672ea6737461747573cd01f4a474797065ac7365727665725f6572726f72a4636f6465af73747265616d5f746f6f5f6c6f6e67a570617261"
        "6dc0ab72657472795f6166746572c0ac73686f756c645f7265747279c0ac757365725f6d657373616765d92d54686520616e737765722077"
        "617320746f6f206c6f6e6720616e6420686173206265656e20637574206f66662ea97061737365645f6f6ec0ae66696e6973685f72656173"
        "6f6e7380a57573616765c0",
        (FAILED, 9),
    ),
    "an end as JSON": (
        WIRE.read_end,
        "ff00000001047b226f7574636f6d65223a2273746f70706564222c22726561736f6e223a22656e6f756768222c226572726f72223a6e756c"
        "6c2c2266696e6973685f726561736f6e73223a7b7d2c227573616765223a7b22746f74616c5f746f6b656e73223a31313830353931363230"
        "3731373431313330333432347d7d",
        (LARGE, 1),
    ),
    "about": (
        WIRE.read_about,
        "0087a26964a27331a56f776e6572a26f31a6746872656164a174a56d6f64656ca16da763726561746564cb41d954fc40200000a16e02a465"
        "63686fc4027b7d",
        ABOUT,
    ),
}
REQUEST = (
    "0078014d8e4b0ac3300c44f73dc6acb3c9d657292108476d4d2ddbf8032dc677af9c6cba9b27464fea48d905eb1279980e77c0a0ad589099bc28"
    "504a4a36c6b76398d0bc5f402186afc456601ee40b2f10faeca5ea8ee8ec2a493cd82bdd21d8c614da9855df515f5a9c87aa9acf9a66d1dcd2e5"
    "5054aa992cefe74718e3d6412a5bb799fe97844ba127cf4bdbf801ca7f434c"
)
SENT: dict[str, Message] = {
    "9301a16ba170": Joined("k", "p"),
    "9302a16ba170": Left("k", "p"),
    "9303a16ba172": Stop("k", "r"),
    "9404a16ba17003": Flush("k", "p", 3),
    "9505a16ba17003a172": Who("k", "p", 3, "r"),
    "93060301": Answer(3, 1),
    "940792a161a162a17003": Erased(("a", "b"), "p", 3),
    "9508a16fa17003a172": Forgotten("o", "p", 3, "r"),
}


def unpacked(data: bytes) -> Any:
    return msgpack.decode(data)


# What an older version has stored ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STORED)
def test_what_version_1_has_stored_is_read(name: str) -> None:
    read, data, value = STORED[name]
    assert read(bytes.fromhex(data)) == value


def test_a_request_that_version_1_has_stored_is_read() -> None:
    request = decode_request(WIRE.read_blob(bytes.fromhex(REQUEST)), stream_id="s1")
    assert request.principal == Principal("u1", models=frozenset({"m"}))
    assert request.body == {"model": "m", "messages": []}
    assert (request.record.thread, request.record.model, request.record.metadata) == ("t", "m", {"a": [1]})


@pytest.mark.parametrize("data", SENT)
def test_a_message_of_version_1_is_understood(data: str) -> None:
    assert read_message(bytes.fromhex(data)) == SENT[data]


def test_this_version_stores_and_sends_what_version_1_reads() -> None:
    stored = {
        "entries": PLAIN.batch(7, ENTRIES),
        "runs": PLAIN.batch_of_runs(2, RUNS),
        "sealed": WIRE.batch(1, ENTRIES[:1]),
        "a completed end": PLAIN.end(COMPLETED, 9),
        "a failed end": PLAIN.end(FAILED, 9),
        "an end as JSON": PLAIN.end(LARGE, 1),
        "about": PLAIN.about(ABOUT),
    }
    assert {name: data.hex() for name, data in stored.items()} == {name: STORED[name][1] for name in stored}
    assert {encode_message(message).hex(): message for message in SENT.values()} == SENT


# What a newer version may store ---------------------------------------------------------------------------------------


def test_further_members_of_an_entry_are_ignored() -> None:
    rows = [[entry.data, entry.t, False, 0, "", "further"] for entry in ENTRIES[:1]]
    assert WIRE.read_batch(HEADER.pack(1, 1, 0) + msgpack.encode(rows)) == (1, ENTRIES[:1])


def test_further_keys_of_an_end_and_of_what_is_known_of_a_stream_are_ignored() -> None:
    head, end = PLAIN.end(FAILED, 9)[:6], asdict(FAILED)
    assert isinstance(end["error"], dict)
    newer = {**end, "error": {**end["error"], "further": 1}, "further": [1]}
    assert WIRE.read_end(head + msgpack.encode(newer)) == (FAILED, 9)
    about = unpacked(PLAIN.about(ABOUT)[1:])
    assert WIRE.read_about(b"\x00" + msgpack.encode({**about, "further": None})) == ABOUT


def test_an_error_that_this_version_does_not_have_keeps_its_members() -> None:
    end = asdict(FAILED)
    newer = {**end, "error": {**end["error"], "name": "quart_openai_sse.errors.Further", "code": "further"}}
    read, _ = WIRE.read_end(PLAIN.end(FAILED, 9)[:6] + msgpack.encode(newer))
    error = read.exception()
    assert error is not None
    assert (error.code, error.status, error.message) == ("further", 500, "Too long.")


@pytest.mark.parametrize("flag", [16, 32, 64, 128])
def test_another_packing_is_refused_in_words(flag: int) -> None:
    first, number, packing = HEADER.unpack_from(batch := PLAIN.batch(1, ENTRIES))
    end, about = PLAIN.end(FAILED, 9), PLAIN.about(ABOUT)
    with pytest.raises(LogUnavailable, match="newer version"):
        WIRE.read_batch(HEADER.pack(first, number, packing | flag) + batch[HEADER.size :])
    with pytest.raises(LogUnavailable, match="newer version"):
        WIRE.read_end(end[:5] + bytes([end[5] | flag]) + end[6:])
    with pytest.raises(LogUnavailable, match="newer version"):
        WIRE.read_about(bytes([about[0] | flag]) + about[1:])


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(1, 1, 0) + msgpack.encode([[b"{}", 1.0, False, 4, ""]]),
        HEADER.pack(1, 1, 8) + msgpack.encode([{"before": b"{", "after": b"}"}]),
    ],
    ids=["a kind of entry", "another form of runs"],
)
def test_a_batch_that_this_version_cannot_read_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(LogUnavailable, match="a batch that this version cannot read"):
        WIRE.read_batch(data)


def test_an_outcome_that_this_version_does_not_have_is_refused_in_words() -> None:
    with pytest.raises(LogUnavailable, match="an end that this version cannot read"):
        WIRE.read_end(PLAIN.end(FAILED, 9)[:6] + msgpack.encode({"outcome": "further"}))


@pytest.mark.parametrize("data", SENT)
def test_further_members_of_a_message_are_ignored(data: str) -> None:
    newer = [*unpacked(bytes.fromhex(data)), "further"]
    assert read_message(msgpack.encode(newer)) == SENT[data]


def test_a_message_that_this_version_does_not_know_is_ignored() -> None:
    assert read_message(msgpack.encode([9, "k"])) is None
    assert read_message(b"\xc1") is None

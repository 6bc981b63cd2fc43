"""The contract of a stream log, as tests that every `StreamLog` must pass."""

from __future__ import annotations

from quart_openai_sse.testing.log_contract_erasing import ErasingContract
from quart_openai_sse.testing.log_contract_faults import FaultsContract
from quart_openai_sse.testing.log_contract_keys import KeysContract
from quart_openai_sse.testing.log_contract_lost import LostContract
from quart_openai_sse.testing.log_contract_reading import ReadingContract


class StreamLogContract(ReadingContract, KeysContract, ErasingContract, FaultsContract, LostContract):
    """The tests that every `StreamLog` must pass. Inherit from this class and define a pytest fixture `log`.

    The fixture returns a new log for each test, which the test opens and closes. The tests are coroutine functions, so
    they need an asyncio plugin. A stream that has ended must stay readable for the duration of a test.

    A log that several processes share needs a second class, which inherits from the first and defines `other`. Then
    the streams are produced with one log and read, found and stopped with the other:

    * `other(log)` returns the same store as another process sees it: a second log, not yet open.

    The following are optional. The tests of one that is not defined are skipped, and the reason names it:

    * `max_bytes`: a number of bytes that no stream of `log` can hold.
    * `async expire(log)` lets time pass until the streams that have ended are no longer kept.
    * `unreachable(log)` is an async context manager in which neither *log* nor the other log can reach the store.
    * `async lose(log)` lets the other processes take the process of *log* for dead, although it runs on.

    `timeout` is the number of seconds that one test may take.
    """

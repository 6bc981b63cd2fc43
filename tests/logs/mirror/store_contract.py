"""The contract of a store behind a `MirrorLog`, as tests that every `Store` must pass."""

from __future__ import annotations

from tests.logs.mirror.store_contract_processes import ProcessesContract
from tests.logs.mirror.store_contract_streams import StreamsContract


class StoreContract(StreamsContract, ProcessesContract):
    """The tests that every `Store` must pass. Inherit from this class and define a fixture `store` and `other`.

    * The fixture `store` returns a store that is empty and not yet open. The tests open and close it.
    * `other(store)` returns the same store as another process sees it, not yet open.

    The rest is optional:

    * `async pass_time(store, seconds)` lets time pass for the store; the tests sleep if it is not defined.
    * `unreachable(store)` is an async context manager in which the store cannot be reached.
    * `async cut(store)` interrupts the messages to *store*, so that some may be missed.
    * `async forget(store)` empties the store behind its back, if it is `forgetful`.
    """

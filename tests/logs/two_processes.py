"""The tests of a stream log's contract that need two processes, for classes that have one or two."""

from __future__ import annotations

from typing import Any

from quart_openai_sse.testing import StreamLogContract


class WithoutTwoProcesses:
    """Leaves them out. To be named before `StreamLogContract`."""

    test_the_readers_of_a_dead_process_do_not_keep_a_stream: Any = None
    test_closing_a_log_ends_no_stream_of_another_process: Any = None
    test_a_lost_stream_is_handed_to_one_living_process: Any = None
    test_a_lost_stream_is_handed_over_with_the_end_that_was_decided: Any = None
    test_every_running_stream_of_a_lost_process_is_handed_over: Any = None


class WithTwoProcesses:
    """Has them again. To be named before a class that leaves them out."""


for _name in vars(WithoutTwoProcesses):
    if _name.startswith("test_"):
        setattr(WithTwoProcesses, _name, getattr(StreamLogContract, _name))

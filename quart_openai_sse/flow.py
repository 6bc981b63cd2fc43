"""Flow control: what a receiver answers to each piece of data, from the socket to the stream log."""

from __future__ import annotations

from enum import Enum


class Flow(Enum):
    """Whether the sender may go on."""

    MORE = "send the next piece"
    PAUSE = "wait for room before the next piece"
    ENOUGH = "send nothing more: the receiver is complete, or has failed"


# Python 3.11 looks up the members of an Enum in Python code: for each event that is slower than a module's name.
MORE, PAUSE, ENOUGH = Flow

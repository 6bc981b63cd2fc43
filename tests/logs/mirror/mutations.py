"""Mutations of the mirrored log, and what finds each of them."""

from __future__ import annotations

from tests.logs.mirror.mutating import Mutation

ENTRIES = "entries_are_read_as_they_were_written"
END = "the_end_is_read_as_it_was_written"
EXPIRED = "an_expired_stream_cannot_be_read_and_holds_its_key"
FENCED = "a_producer_that_was_taken_for_dead_is_told_and_fenced"
UNREACHABLE = "an_unreachable_store_is_no_missing_stream"
HANDED = "a_lost_stream_is_handed_to_one_living_process"
LEFT = "the_producer_is_told_when_the_last_reader_has_closed"
ERASED = "an_erased_stream_has_expired_in_every_process"

MUTATIONS = [
    # A producer that was taken for dead
    Mutation(
        "fencing is off",
        "own",
        "        if self.lost:\n            return\n        self.lost = True\n",
        "        return\n        self.lost = True\n",
        (FENCED, "sequences"),
    ),
    Mutation(
        "a fenced stream is read from memory",
        "own",
        "        self._mirroring.let_go(self)\n",
        "",
        ("a_stream_that_is_lost_while_it_ends_has_one_end", "sequences"),
    ),
    Mutation(
        "a fenced producer may decide",
        "own",
        "        return not self.lost\n",
        "        return True\n",
        ("a_process_that_was_taken_for_dead_decides_nothing",),
    ),
    Mutation(
        "only a write finds out that another process has the stream",
        "own_streams",
        "                if stream.created:\n                    await stream.lose()",
        "                pass",
        ("a_silent_producer_is_told_that_it_was_taken_for_dead", "sequences"),
    ),
    # The streams of a dead process
    Mutation(
        "a stream is claimed by all who try",
        "lost",
        "writer = self._new_writer()",
        'writer = f"{process}s.1"',
        ("one_of_several_processes_ends_a_lost_stream",),
    ),
    Mutation(
        "one check finds a process dead",
        "processes",
        "_CHECKS = 3",
        "_CHECKS = 1",
        ("a_process_that_renews_its_lease_a_little_late_is_not_dead",),
    ),
    Mutation(
        "no process is found dead",
        "processes",
        "if checks >= _CHECKS",
        "if checks < 0",
        ("the_streams_of_a_process_that_is_taken_for_dead_fail",),
    ),
    Mutation(
        "a decided end is forgotten",
        "lost",
        "self._wire.read_end(state.decided)[0] if state.decided else LOST",
        "LOST",
        ("a_decided_end_is_the_end_of_a_lost_stream",),
    ),
    Mutation("no lost stream is handed over", "lost", "if self.on_lost is not None", "if False", (HANDED,)),
    Mutation("the request is not written", "writes", "self._wire.blob(stream.request)", 'b""', (HANDED,)),
    Mutation(
        "a place that was lost is refused",
        "mirrors",
        "if state.end and self._wire.read_end(state.end)[0].reason == LOST.reason:",
        "if False:",
        ("sequences",),
    ),
    # What is written
    Mutation(
        "places are one too high",
        "writes",
        "self._wire.batch(place + 1, entries)",
        "self._wire.batch(place + 2, entries)",
        (ENTRIES,),
    ),
    Mutation(
        "places of plain chunks are one too high",
        "writes",
        "self._wire.batch_of_runs(place + 1, runs)",
        "self._wire.batch_of_runs(place + 2, runs)",
        ("every_resume_point_gives_exactly_the_rest",),
    ),
    Mutation(
        "an end is written before the last entries",
        "writes",
        "        if write.count < stream.last:\n            return write\n",
        "",
        (ENTRIES,),
    ),
    Mutation(
        "only the first batch of many is written",
        "writing",
        "        if stream.behind and not stream.marked:",
        "        if False:",
        (ENTRIES,),
    ),
    Mutation(
        "only urgent streams are written",
        "writing",
        "call_later(_LATER",
        "call_later(1e9",
        ("a_stream_that_is_not_read_elsewhere_is_stored_soon",),
    ),
    Mutation(
        "a write that moved is repeated as it was",
        "writing",
        "            stream.written = written.count\n            self._put_back(stream)",
        "            self._put_back(stream)",
        ("seeds",),
    ),
    Mutation(
        "what the store has forgotten is not written again",
        "writing",
        '        elif written.result == "gone":\n            stream.forgotten()',
        '        elif written.result == "gone":\n            pass',
        ("a_stream_that_the_store_has_forgotten_is_stored_again_with_the_next_write",),
    ),
    Mutation(
        "what hooks need is not written again",
        "own",
        "self.created = self.is_kept = self.is_decided = self.is_whole = False",
        "self.created = self.is_whole = False",
        ("a_decided_end_is_stored_again_after_the_store_has_forgotten_it",),
    ),
    Mutation("the retention is ignored", "writes", "retention=self._retention", "retention=1e9", (EXPIRED,)),
    Mutation("there is no tombstone", "writes", "tombstone=self._tombstone", "tombstone=0.0", (EXPIRED, "sequences")),
    Mutation(
        "a start that failed holds its key",
        "writes",
        'holds_key=write.count > 0 or end.outcome != "failed"',
        "holds_key=True",
        ("sequences",),
    ),
    Mutation(
        "an end that could not be stored is said to be",
        "own",
        "        if not self.is_whole and not self.lost:\n            raise LogUnavailable",
        "        if False:\n            raise LogUnavailable",
        ("an_end_that_cannot_be_stored_at_once_is_stored_later",),
    ),
    Mutation(
        "a stream that could not be stored is said to be",
        "own",
        "        if not self.created and not self.lost:\n            raise LogUnavailable",
        "        if False:\n            raise LogUnavailable",
        (UNREACHABLE,),
    ),
    Mutation(
        "a stop is learned from messages only",
        "writing",
        "            if written.stop:",
        "            if False:",
        ("a_stop_that_was_not_heard_is_learned_with_the_next_write",),
    ),
    # What readers in other processes get
    Mutation(
        "a gap is not filled",
        "mirrors",
        "                self._missed(stream, first + len(entries) - 1)",
        "                pass",
        ("a_batch_that_was_missed_is_loaded_when_the_next_one_comes",),
    ),
    Mutation(
        "an end does not wait for the entries before it",
        "mirrors",
        "            if stream.last >= count:\n                stream.finish(end)",
        "            if True:\n                stream.finish(end)",
        ("an_end_waits_for_the_batch_before_it_that_was_missed",),
    ),
    Mutation("again is ignored", "log", "if self._is_open and not self._looking:", "if False:", ("seeds",)),
    Mutation(
        "the window is off by one",
        "following",
        "islice(self._window, place - self.base, None)",
        "islice(self._window, max(0, place - self.base - 1), None)",
        ("two_readers_get_the_same",),
    ),
    Mutation(
        "an entry that has left the window is still counted",
        "following",
        "            self.base += 1\n",
        "",
        ("a_reader_far_behind_catches_up_with_a_running_stream",),
    ),
    Mutation(
        "a batch that the mirror has is added again",
        "following",
        "            entries = entries[missing:]\n",
        "            pass\n",
        ("seeds",),
    ),
    Mutation(
        "a page goes beyond the mirror",
        "following",
        "        entries = entries[: max(0, self._mirror.last - place)]\n",
        "",
        ("a_reader_that_pages_gets_no_entry_twice",),
    ),
    Mutation(
        "a place ahead of the store is refused",
        "mirrors",
        "if place > state.count and not state.end:",
        "if False:",
        ("a_place_ahead_of_the_store_is_asked_for",),
    ),
    Mutation("a stream that has expired is read", "loading", "if not page.state.kept:", "if False:", (EXPIRED,)),
    Mutation(
        "what the store has forgotten is unknown",
        "loading",
        "            await self._search.vouch(key)\n",
        '            raise StreamNotFound("It is not in the store.")\n',
        ("seeds",),
    ),
    Mutation(
        "the first answer counts, whatever it is",
        "questions",
        "if self.found or self.answers >= self.expected:",
        "if self.answers:",
        ("seeds",),
    ),
    Mutation(
        "a process that does not answer has nothing",
        "questions",
        'raise LogUnavailable("Another process of the app does not answer.") from None',
        "return 0",
        ("seeds",),
    ),
    # Presence
    Mutation(
        "readers elsewhere are not counted",
        "loading",
        'reader = self._process if join else ""',
        'reader = ""',
        ("a_reader_whose_coming_was_not_heard_keeps_the_stream",),
    ),
    Mutation(
        "readers elsewhere never leave",
        "mirrors",
        "while stream.end is None and key not in self._streams:",
        "while False:",
        (LEFT,),
    ),
    Mutation(
        "presence is not asked before the producer is told",
        "shared_stream",
        "                self.look_for_readers()",
        "                self._left and self._left()",
        ("a_reader_whose_coming_was_not_heard_keeps_the_stream",),
    ),
    # Keys, the index, erasure
    Mutation(
        "create asks nobody",
        "log",
        "if digest and (held is None or held.failed_empty):",
        "if False:",
        ("of_two_creates_at_once_one_gets_the_stream", "sequences"),
    ),
    Mutation(
        "digests are not compared",
        "own_streams",
        "if state is not None and state.digest != digest:",
        "if False:",
        ("a_key_that_exists_is_attached_to",),
    ),
    Mutation(
        "find returns all that ended",
        "search",
        "if not state.end or state.ended_ago < ended_within",
        "if True",
        ("sequences",),
    ),
    Mutation(
        "other processes keep what was erased",
        "erasing",
        "            await self._questions.erased(keys)",
        "            pass",
        (ERASED,),
    ),
    # The bytes
    Mutation(
        "entries lose the mark of usage",
        "wire",
        "else (each.data, each.t, each.usage, _NUMBERS[each.kind], each.name)",
        "else (each.data, each.t, False, _NUMBERS[each.kind], each.name)",
        (ENTRIES,),
    ),
    Mutation(
        "events lose their names",
        "wire",
        "else (each.data, each.t, each.usage, _NUMBERS[each.kind], each.name)",
        'else (each.data, each.t, each.usage, _NUMBERS[each.kind], "")',
        (ENTRIES,),
    ),
    Mutation(
        "entries lose their times",
        "wire",
        "Entry(row.data, row.t, row.usage",
        "Entry(row.data, 0.0, row.usage",
        (ENTRIES,),
    ),
]

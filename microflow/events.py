# SPDX-License-Identifier: Apache-2.0
"""Records and the bus: how what was appended reaches those who wait for it.

A :class:`Record` is one thing that happened, as one member of a log line. The :class:`Bus` hands
records to subscribers *after* they were appended, never before (invariant I1). Two parties publish:
the client, what its own process appended; the follower of a store, what other processes appended.

Subscribers are called in the thread that publishes, with no lock of ours held, in the order in which
they subscribed. Threads that append to one run at the same time may publish in either order, so a
subscriber treats a record as news to look at, not as the whole truth: it subscribes first, then reads,
then waits, and reads again when it is called. What a subscriber raises is logged and goes nowhere
else (invariant I7).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ._forks import new_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Subscriber = Callable[["Record"], object]


class Record:
    """One thing that happened in one run: a member of an accepted log line.

    ``position`` is the sequence number of its line, ``epoch`` the claim number under which the line
    was written (None for a line of a process that does not own the run), ``time`` the writer's wall
    clock in microseconds, ``kind`` and ``data`` what happened.
    """

    __slots__ = ("data", "epoch", "kind", "position", "run_id", "time")

    def __init__(
        self, run_id: str, position: int, epoch: int | None, time: int, kind: str, data: dict[str, Any]
    ) -> None:
        self.run_id = run_id
        self.position = position
        self.epoch = epoch
        self.time = time
        self.kind = kind
        self.data = data

    @property
    def subject(self) -> str:
        """The id of the run that the record is about: a task run's, else that of the log's flow run."""
        subject: str = self.data.get("run") or self.run_id
        return subject

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in Record.__slots__)

    __hash__ = None  # type: ignore[assignment]  # records hold dicts and compare by value

    def __repr__(self) -> str:
        return f"Record({self.run_id}#{self.position} {self.kind} {self.data!r})"


class Bus:
    """Delivers records to those who subscribed to the run or to the log that they belong to."""

    def __init__(self) -> None:
        # guards the two tables; never held while a subscriber runs
        self._lock = new_lock()
        self._by_subject: dict[str, tuple[Subscriber, ...]] = {}
        self._by_log: dict[str, tuple[Subscriber, ...]] = {}

    def subscribe(self, subject: str, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with each record about the run `subject`; returns what ends that."""
        return self._add(self._by_subject, subject, subscriber)

    def subscribe_log(self, run_id: str, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with each record in the log of the flow run `run_id`, its task runs' too."""
        return self._add(self._by_log, run_id, subscriber)

    def _add(self, table: dict[str, tuple[Subscriber, ...]], key: str, subscriber: Subscriber) -> Callable[[], None]:
        ended = False

        def end() -> None:
            nonlocal ended
            with self._lock:
                kept = list(table.get(key, ()))
                if not ended:  # once only: the same subscriber may have another subscription
                    kept.remove(subscriber)
                ended = True
                if kept:
                    table[key] = tuple(kept)
                else:
                    table.pop(key, None)

        with self._lock:
            table[key] = (*table.get(key, ()), subscriber)
        return end

    def has_subscribers(self, run_id: str) -> bool:
        """Whether anybody might want records of this log; publishing is skipped when nobody does."""
        return bool(self._by_subject) or run_id in self._by_log

    def publish(self, records: Sequence[Record]) -> None:
        """Hand the records over, in order. Called after they were appended, with no lock held."""
        for record in records:
            for subscriber in (*self._by_subject.get(record.subject, ()), *self._by_log.get(record.run_id, ())):
                try:
                    subscriber(record)
                except Exception as error:  # I7: a subscriber cannot hurt the run that published
                    _report(subscriber, error)


def _report(subscriber: Subscriber, error: Exception) -> None:
    # logging is loaded only when there is something to say: this module is on the import path of everything
    import logging

    logging.getLogger(__name__).error(
        "a subscriber of run records failed: %r", subscriber, exc_info=(type(error), error, sys.exc_info()[2])
    )

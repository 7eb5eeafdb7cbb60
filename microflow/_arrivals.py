# SPDX-License-Identifier: Apache-2.0
"""Waiting for many futures at once: ``wait`` and ``as_completed``.

One condition for all futures of a wait; each future takes a constant number of steps, so 100,000 take 100,000
times as long as one. Works with whatever has ``_final_state``, ``wait`` and ``add_done_callback``: kinds of
futures may be mixed, and a third party's may be among them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ._boundary import check_after_wait
from ._deadlocks import blocking, needs
from ._waits import slot_given_back

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from ._deadlocks import Job
    from .futures import RunFuture

R = TypeVar("R")


class DoneAndNotDoneFutures(NamedTuple):
    """What ``wait`` returns: the set of done futures and the set of the others."""

    done: set[RunFuture[Any]]
    not_done: set[RunFuture[Any]]


class WaitTimeout(TimeoutError):
    """Our own deadline, told apart from a TimeoutError out of a task."""


def check_timeout(timeout: float | None) -> None:
    """ValueError for a negative one."""
    if timeout is not None and timeout < 0:
        raise ValueError(f"'timeout' must be a non-negative number, got {timeout}")


def _distinct(futures: Iterable[RunFuture[R]]) -> list[RunFuture[R]]:
    try:
        distinct = list(dict.fromkeys(futures))
    except TypeError as error:  # something that cannot be hashed, or no iterable at all
        raise TypeError(f"an iterable of futures is needed, as map() returns it, and was not given: {error}") from None
    for future in distinct:
        if not hasattr(future, "_final_state"):
            raise TypeError(f"{future!r} is not a future of a run; give what submit() or map() returned")
    return distinct


class _Arrivals:
    """The futures of one wait in the order in which they are done. A wait for ``_deadlocks``."""

    def __init__(self, futures: list[RunFuture[Any]], needs_all: bool) -> None:
        self.needs_all = needs_all
        self.left = dict.fromkeys(futures)  # in the order given
        self._arrived: deque[RunFuture[Any]] = deque()
        # guards nothing but the sleep of the waiter; deque operations are atomic
        self._condition = threading.Condition()
        # Those that might be what is waited for in vain. The first was looked at and had hope; it stays the first
        # until it has arrived, so that a step looks at few futures, however many are left.
        self._candidates = deque(futures)
        self._hope: RunFuture[Any] | None = None
        arrive = self._arrive  # bound once
        for future in futures:
            if future._final_state is not None:
                self._arrived.append(future)
            else:
                getattr(future, "_when_done", future.add_done_callback)(arrive)

    def _arrive(self, future: RunFuture[Any]) -> None:
        with self._condition:
            self._arrived.append(future)
            self._condition.notify()

    def next(self, deadline: float | None) -> RunFuture[Any] | None:
        """The next one that is done; None when the deadline passes first."""
        if not self._arrived:
            if deadline is not None and deadline <= time.monotonic():
                return None
            with blocking(self), slot_given_back(), self._condition:
                while not self._arrived:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        return None
                    self._condition.wait(left)
        future = self._arrived.popleft()
        del self.left[future]
        return future

    def pending(self) -> tuple[RunFuture[Any], ...]:
        """The futures that are waited for; asked for by any thread."""
        return tuple(self.left)

    def is_hopeless(self, job: Job) -> bool:
        """Whether one of those that are all needed, or each of those of which one is, needs `job` itself."""
        candidates, rejected = self._candidates, 0
        if self.needs_all:
            unchecked = list(candidates)
            candidates.clear()  # who makes it hopeless later finds that out himself
            return needs(unchecked, job)
        while candidates:
            first = candidates[0]
            if first not in self.left:
                candidates.popleft()
            elif first is self._hope:
                return False
            elif not needs([first], job):
                self._hope = first
            elif rejected == len(candidates):
                return True
            else:
                candidates.rotate(-1)
                rejected += 1
        return False


def as_completed(futures: Iterable[RunFuture[R]], timeout: float | None = None) -> Generator[RunFuture[R], None, None]:
    """Yield the futures as they are done, each distinct one once.

    The clock starts at the first ``next`` and runs while the consumer works. TimeoutError, saying how
    many are unfinished, when `timeout` seconds have passed; 0 yields those that are done already."""
    check_timeout(timeout)
    return _as_completed(futures, timeout)


def _as_completed(
    futures: Iterable[RunFuture[R]], timeout: float | None, needs_all: bool = False
) -> Generator[RunFuture[R], None, None]:
    distinct = _distinct(futures)
    deadline = None if timeout is None else time.monotonic() + timeout
    arrivals = _Arrivals(distinct, needs_all)
    while arrivals.left:
        future = arrivals.next(deadline)
        if future is None:
            raise WaitTimeout(f"{len(arrivals.left)} (of {len(distinct)}) futures unfinished")
        future.wait(0)  # adopt the final state
        yield future


def wait(futures: Iterable[RunFuture[R]], timeout: float | None = None) -> DoneAndNotDoneFutures:
    """Wait until all are done or `timeout` seconds have passed; never raises for a failed run or the timeout.

    Pause is raised when the current flow run is to be suspended."""
    check_timeout(timeout)
    distinct = _distinct(futures)
    done: set[RunFuture[Any]] = set()
    try:
        done.update(_as_completed(distinct, timeout, needs_all=True))
    except WaitTimeout:
        done.update(future for future in distinct if future._final_state is not None)
        check_after_wait(timed_out=True)
    return DoneAndNotDoneFutures(done, set(distinct) - done)

# SPDX-License-Identifier: Apache-2.0
"""Blocking waits that would never end, found before they begin.

Goal: a coroutine that blocks its event loop with ``future.result()`` waits for something that needs this very
loop, directly or through any number of other runs. Nobody can end that wait; it must raise, and say
``await future``.

What does not work: looking only at the run that is waited for. It may not have started, because an upstream of
it runs on the loop; or it runs elsewhere, and waits itself for a run on the loop; and it may begin to do so
long after the loop was blocked.

The rule: each job (a submitted run) that blocks says for which futures it waits, and a loop says which job
blocks it. Whoever is about to block walks from what it waits for:

* a job on a loop that another job blocks needs that job,
* a job that has not started needs the upstreams that are not done,
* a job that blocks needs what it waits for: one of them (``as_completed``), or all.

If the walk comes back to the job that is about to block, in the last case by every way, the wait is refused.
Who waits says so before he looks, so of several who close a circle together the last one sees it. Nothing of
this is done while no loop is blocked.

Known holes: what a coroutine awaits is not followed, since it may have other branches that go on; and runs that
wait for each other without any loop are not looked for.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ._forks import new_lock
from ._typing_only import Protocol
from ._waits import SLOT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from types import TracebackType


_NEVER = (
    "this wait would never end: what it waits for needs an event loop that is blocked meanwhile; "
    "use `await future` instead of future.result() or future.wait() in a coroutine"
)


class Loop(Protocol):
    """An event loop in a thread of its own."""

    thread: threading.Thread
    #: the job that blocks the loop now
    blocked_by: Job | None


class Job(Protocol):
    """A submitted run, as the walk sees it. Futures name theirs in an attribute ``job``."""

    #: the futures that it cannot start without; empty once it may start
    upstreams: Collection[Any]
    #: the loop that it was started on
    loop_thread: Any
    #: what it blocks for now
    waiting: Waiting | None

    def has_ended(self) -> bool:
        """Whether its future is done."""


class Waiting(Protocol):
    """A blocking wait."""

    def pending(self) -> Iterable[Any]:
        """The futures that are waited for and not done."""

    #: whether it ends only when all of them are done, not when one is
    needs_all: bool

    def is_hopeless(self, job: Job) -> bool:
        """Whether `job`, which is about to wait for this, would wait for ever."""


class One:
    """The wait for one future."""

    __slots__ = ("_future",)
    needs_all = True

    def __init__(self, future: Any) -> None:
        self._future = future

    def pending(self) -> tuple[Any]:
        """The future."""
        return (self._future,)

    def is_hopeless(self, job: Job) -> bool:
        """Whether the future needs `job`."""
        return needs((self._future,), job)


#: the thread beside which no other can be started, once that is known: a wait in it is for what only it could do
only_thread: threading.Thread | None = None

# Guards the next two and every ``blocked_by``; held for the length of a walk.
_lock = new_lock()
_blocked_loops = 0


class blocking:
    """``with blocking(waiting):`` this thread blocks until `waiting` is over. RuntimeError if that is never."""

    __slots__ = ("_before", "_job", "_loop", "_loop_before", "_waiting")

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    def __enter__(self) -> None:
        job: Job | None = getattr(SLOT.get(), "job", None)
        self._job = job
        self._loop: Loop | None = None
        if only_thread is threading.current_thread() and any(
            getattr(getattr(future, "job", None), "loop_thread", None) is not None
            for future in self._waiting.pending()
        ):
            raise RuntimeError(_NEVER)
        if job is None:
            return
        self._before, job.waiting = job.waiting, self._waiting
        loop = job.loop_thread
        if loop is not None and loop.thread is threading.current_thread():
            self._loop = loop
        if self._loop is not None or _blocked_loops:
            with _lock:
                self._block_loop(job)
                hopeless = self._waiting.is_hopeless(job)
            if hopeless:
                self._leave(job)
                raise RuntimeError(_NEVER)

    def _block_loop(self, job: Job) -> None:
        global _blocked_loops
        if self._loop is not None:
            self._loop_before, self._loop.blocked_by = self._loop.blocked_by, job
            _blocked_loops += 1

    def _leave(self, job: Job) -> None:
        global _blocked_loops
        job.waiting = self._before
        if self._loop is not None:
            with _lock:
                self._loop.blocked_by = self._loop_before
                _blocked_loops -= 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._job is not None:
            self._leave(self._job)


def needs(futures: Iterable[Any], job: Job) -> bool:
    """Whether one of `futures` cannot be done before `job` goes on."""
    return _needs([getattr(future, "job", None) for future in futures], job, set())


def _needs(stack: list[Job | None], goal: Job, seen: set[int]) -> bool:
    while stack:
        job = stack.pop()
        if job is goal:
            return True
        if job is None or id(job) in seen:
            continue
        seen.add(id(job))
        if job.has_ended():
            continue
        loop = job.loop_thread
        if loop is not None and loop.blocked_by is not None and loop.blocked_by is not job:
            stack.append(loop.blocked_by)
            continue
        stack.extend(getattr(future, "job", None) for future in tuple(job.upstreams))
        waiting = job.waiting
        if waiting is None:
            continue
        next_jobs = [getattr(future, "job", None) for future in waiting.pending()]
        if waiting.needs_all or len(next_jobs) == 1:
            stack.extend(next_jobs)
        # the depth is at most the number of threads that block now
        elif next_jobs and all(_needs([each], goal, set(seen)) for each in next_jobs):
            return True
    return False

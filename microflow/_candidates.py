# SPDX-License-Identifier: Apache-2.0
"""Which of the queued runs a worker may take now, and which next.

The queue names runs, in no order of ours; what is known of each stands in its log. So each entry's log is read once
when the entry is new, and again only when something may have changed:

* a run that another process works on is looked at again when that process has died (asked once a second for each
  process, not for each run), and every few seconds in case it let go;
* one that this worker has taken and could not bring to an end (its log refused a record), and one whose log could not
  be read, is looked at again every few seconds too, since whatever it was may be over;
* a run whose upstream runs have not ended becomes a candidate when the last of them has, and takes no slot before;
* a run that is scheduled for later, or that waits for its retry, is a candidate from that moment on;
* a flow run that is paused without a process leaves the queue; whoever resumes it puts it back.

Candidates are taken in the order of their scheduled time. The folder of the queue is listed only when it was
changed: asking costs about 2 µs. A change in the tick of the file system's clock in which it was listed bears the same
stamp, so a folder that was changed a moment ago is listed again.
"""

from __future__ import annotations

import threading
import time
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from ._loggers import get_logger
from ._waits import now_us, to_us
from .client.objects import TaskRunResult
from .exceptions import MicroflowException
from .states import StateType
from .task_runs import TaskRunWatch, has_ended

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from .client.fold import Run
    from .client.orchestration import SyncClient

OWNERS_CHECK = 1.0  # seconds between two looks whether other workers are alive
LOOK_AGAIN = 5.0  # seconds after which what others work on is looked at again in any case
MOST_TRIES = 4  # how often one worker takes the same run
TICK = 50_000_000  # nanoseconds that the clock of a file system may lag behind
RELIST = 0.1  # seconds between two listings while there is something to do


class Candidates:
    """The queue as one worker sees it. Used by one thread."""

    def __init__(self, client: SyncClient, is_served: Callable[[Run], bool]) -> None:
        self._client = client
        self._queue = client.store.queue
        self._is_served = is_served
        self._known: set[str] = set()
        self._ready: list[tuple[int, str]] = []  # a heap: when it is due, the run
        self._elsewhere: dict[str, str] = {}  # run -> the token of the process that works on it
        self._tries: dict[str, int] = {}  # run -> how often it was to be taken here
        self._taken: set[str] = set()
        self._unreadable: set[str] = set()
        # runs that wait for others, and how to end that; an upstream's end is told in any thread
        self._waiting: dict[str, _Unmet] = {}
        self._met: list[str] = []
        self._leaving: set[str] = set()  # suspended runs whose process has not let go yet: asked about every second
        self._stamp = -1
        self._uncertain = True
        self._listed = self._owners_asked = self._looked_again = 0.0

    def refresh(self) -> None:
        """Look at what is new."""
        now = time.monotonic()
        if not (self._ready and now - self._listed < RELIST):
            stamp = self._queue.stamp()
            if self._uncertain or stamp != self._stamp:
                self._stamp, self._listed = stamp, now
                self._uncertain = time.time_ns() - stamp < TICK
                self._list()
        while self._met:
            self.look_at(self._met.pop())
        if now - self._owners_asked >= OWNERS_CHECK:
            self._owners_asked = now
            self._ask_for_owners(now)

    def _list(self) -> None:
        names = self._queue.names()
        for run_id in self._known - names:
            self._forget(run_id)
            self._tries.pop(run_id, None)
            self._taken.discard(run_id)
            self._unreadable.discard(run_id)
        for run_id in names - self._known:
            self.look_at(run_id)

    def _ask_for_owners(self, now: float) -> None:
        again = now - self._looked_again >= LOOK_AGAIN
        if again:
            self._looked_again = now
        alive: dict[str, bool] = {}
        for run_id, token in list(self._elsewhere.items()):
            if token not in alive:
                alive[token] = self._client.store.is_alive(token)
            if again or not alive[token] or run_id in self._leaving:
                self.look_at(run_id)
        if again:
            for run_id in [*self._taken, *self._unreadable]:
                if run_id not in self._client.owned and self._tries.get(run_id, 0) < MOST_TRIES:
                    self.look_at(run_id)

    def look_again_at(self, run_id: str) -> None:
        """Have a run looked at by the next ``refresh``. Any thread may call this."""
        self._met.append(run_id)

    def look_at(self, run_id: str) -> None:
        """Read the log of a run, and put the run where it belongs."""
        self._forget(run_id)
        self._known.add(run_id)
        try:
            run = self._client.fold(run_id)
        except MicroflowException as problem:
            if run_id not in self._unreadable:
                get_logger("worker").warning("the queued run %s cannot be read: %s", run_id, problem)
            self._unreadable.add(run_id)
            return
        finally:
            if run_id not in self._client.owned:
                self._client.store.close(run_id)
        self._unreadable.discard(run_id)
        state = run.flow_run.state
        if run_id in self._client.owned:
            self._taken.add(run_id)
            return
        self._taken.discard(run_id)
        if has_ended(state):  # whoever ended it died before it could say so
            self._queue.take(run_id)
        elif not self._is_served(run):
            pass
        elif run.owner is not None and self._client.is_alive(run):
            self._elsewhere[run_id] = run.owner
            if state is not None and state.is_left():
                self._leaving.add(run_id)
        elif state is not None and state.is_paused():
            self._known.discard(run_id)
            self._tries.pop(run_id, None)
            self._client.dequeue(run_id)
        else:
            unmet = _Unmet(run, self._client, self._met) if run.is_task else None
            if unmet is not None and unmet.begin():
                self._waiting[run_id] = unmet
                return
            assert state is not None
            due = state.state_details.scheduled_time if state.type is StateType.SCHEDULED else None
            heappush(self._ready, (to_us(due) or 0, run_id))

    def _forget(self, run_id: str) -> None:
        self._known.discard(run_id)
        self._elsewhere.pop(run_id, None)
        self._leaving.discard(run_id)
        unmet = self._waiting.pop(run_id, None)
        if unmet is not None:
            unmet.end()

    def next(self) -> str | None:
        """The run that is to be taken next, if it is due. It is no candidate any more then."""
        while self._ready and self._ready[0][0] <= now_us():
            _, run_id = heappop(self._ready)
            if run_id in self._known and run_id not in self._elsewhere and run_id not in self._waiting:
                self._tries[run_id] = self._tries.get(run_id, 0) + 1
                self._taken.add(run_id)
                return run_id
        return None

    def seconds_to_next(self) -> float | None:
        """How long until the next candidate is due; None when there is none."""
        return max(0.0, (self._ready[0][0] - now_us()) / 1e6) if self._ready else None

    def close(self) -> None:
        """Wait for nothing any more."""
        for run_id in list(self._waiting):
            self._forget(run_id)


class _Unmet:
    """The upstream runs of a deferred run that have not ended."""

    def __init__(self, run: Run, client: SyncClient, met: list[str]) -> None:
        self._client = client
        self._run_id = run.run_id
        self._met = met
        inputs = run.task_run(run.run_id).task_inputs
        self._upstreams: set[UUID] = {
            each.id
            for name, each_inputs in inputs.items()
            if name != "__parents__"
            for each in each_inputs
            if isinstance(each, TaskRunResult) and each.id is not None
        }
        self._watches: list[TaskRunWatch] = []
        # guards the count
        self._lock = threading.Lock()
        self._left = 1

    def begin(self) -> bool:
        """Watch them; whether there is one to wait for."""
        for upstream in self._upstreams:
            if not _has_own_log(upstream, self._client):
                continue  # it was recorded with the flow run that made it, and whoever passed it on knew its end
            with self._lock:
                self._left += 1
            watch = TaskRunWatch(upstream, lambda _: self._one_less())
            self._watches.append(watch)
            watch.begin()
        with self._lock:
            self._left -= 1
            waits = self._left > 0
        return waits

    def _one_less(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._met.append(self._run_id)

    def end(self) -> None:
        """Watch no longer."""
        for watch in self._watches:
            watch.end()


def _has_own_log(run_id: UUID, client: SyncClient) -> bool:
    try:
        client.store.read(str(run_id))
    except MicroflowException:
        return False
    return True

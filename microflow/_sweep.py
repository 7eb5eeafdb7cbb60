# SPDX-License-Identifier: Apache-2.0
"""What a server of flows finds in the home that the queue does not name.

Goal: a run whose process was killed goes on though nobody put it into the queue, and a pause whose time has passed is
on record as failed though nobody tried to resume it. Reading every log again and again would cost more than it gives.

The rule: each log is read once when a server begins, newest first, and of a run that has ended only the two ends; then
only logs that are new, runs whose process has died since, and, once a minute, the few others that have not ended. What
is found is put into the queue, where the claim decides as always; the end of an expired pause is appended here, by
whoever is first. It is done in slices of a few milliseconds between the claims, by the worker's own thread.

What is left alone: subflows, which are their parents'; runs of flows that are not served here; PENDING runs that nobody
ever claimed, whose creator is about to; what was let go of without an end, which is an operator's business; logs that
cannot be read. A run that was scheduled or resumed a moment ago is about to be put into the queue by whoever did that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ._loggers import get_logger
from ._waits import now_us
from .exceptions import MicroflowException
from .states import StateType
from .task_runs import has_ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from .client.fold import Run
    from .client.orchestration import SyncClient

EVERY = 5.0  # seconds between two looks through the home
SLICE = 0.01  # seconds that one step may take, plus the reading of one log
AGAIN = 60.0  # seconds after which a run that has not ended is read again in any case
GRACE = 5.0  # seconds that whoever scheduled or resumed a run has to put it into the queue


class Sweep:
    """Looks through a home, a slice at a time. Used by one thread."""

    def __init__(self, client: SyncClient, is_served: Callable[[Run], bool]) -> None:
        self._client = client
        self._is_served = is_served
        self._over: set[str] = set()  # runs that have ended, or cannot be read: never read again
        self._owner: dict[str, str] = {}  # run -> the token of the process that works on it
        self._quiet: dict[str, float] = {}  # run -> when it is to be read again
        self._to_do: list[str] = []
        self._next = 0.0

    def step(self) -> bool:
        """Look at some runs; whether there are more to look at now."""
        now = time.monotonic()
        if not self._to_do:
            if now < self._next:
                return False
            leave = self._over | self._client.store.queue.names()
            self._to_do = [run_id for run_id in self._client.store.list() if run_id not in leave]
            # listing a home of very many runs takes its time, of which at most a fiftieth is to go there
            self._next = now + max(EVERY, 50 * (time.monotonic() - now))
        while self._to_do and time.monotonic() < now + SLICE:
            run_id = self._to_do.pop()
            try:
                self._look_at(run_id)
            except MicroflowException:  # damaged, too new, deleted meanwhile: listed and reported by others
                self._over.add(run_id)
        return bool(self._to_do)

    def _look_at(self, run_id: str) -> None:
        now = time.monotonic()
        token = self._owner.get(run_id)
        died = token is not None and not self._client.store.is_alive(token)
        if run_id in self._client.owned or (not died and now < self._quiet.get(run_id, 0.0)):
            return
        try:
            run, problem = self._client.glance(run_id)
            if problem is not None:
                raise problem
            self._quiet[run_id] = now + AGAIN
            self._owner.pop(run_id, None)
            self._judge(run)
        finally:
            if run_id not in self._client.owned:
                self._client.store.close(run_id)

    def _judge(self, run: Run) -> None:
        run_id, state = run.run_id, run.flow_run.state
        if state is None or has_ended(state):
            self._over.add(run_id)
            self._quiet.pop(run_id, None)
            return
        alive = run.owner is not None and self._client.is_alive(run)
        if state.is_paused() and (state.is_suspended() or not alive):
            deadline = state.state_details.pause_timeout
            left = AGAIN if deadline is None else deadline.timestamp() - time.time()
            if left <= 0 and not run.is_task:
                self._client.expire_pause(run_id)
            self._quiet[run_id] = time.monotonic() + min(AGAIN, max(0.0, left))
        elif alive:
            assert run.owner is not None
            self._owner[run_id] = run.owner
        elif self._is_served(run) and self._is_left_behind(run):
            if state.type is StateType.SCHEDULED and now_us() - state.at < GRACE * 1e6:
                self._quiet.pop(run_id)
                return
            get_logger("worker").info("run %s was left behind in state %s; it is queued", run_id, state)
            self._client.store.queue.put(run_id)
            self._quiet.pop(run_id)  # should it leave the queue without an end, it is looked at again

    def _is_left_behind(self, run: Run) -> bool:
        """Whether a run of ours, which nobody works on, is to be run by whoever comes."""
        state = run.flow_run.state
        return run.owner is not None or (state is not None and state.type is StateType.SCHEDULED)

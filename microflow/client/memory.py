# SPDX-License-Identifier: Apache-2.0
"""Task runs outside of any flow: in this process's memory, and nowhere else."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from .._forks import new_lock
from .._waits import now_us
from ..events import Record
from ..states import Pending
from ..transitions import task_verdict
from .fold import note_record, rolled_back_state
from .live import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from ..events import Bus
    from ..states import State
    from .objects import TaskRun


class MemoryTasks:
    """Task runs outside of any flow: kept in memory, the latest 10,000, written nowhere.

    Has the methods of :class:`LiveRun` that a task engine uses, so that the engine need not know."""

    LIMIT = 10_000
    must_sync = False
    refused: Exception | None = None

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        # guards the two tables; held for no longer than a look-up
        self._lock = new_lock()
        self._runs: OrderedDict[UUID, TaskRun] = OrderedDict()
        self._states: dict[UUID, list[State[Any]]] = {}
        self._asset_notes: OrderedDict[UUID, list[dict[str, Any]]] = OrderedDict()

    def propose_task(
        self,
        task_run: TaskRun,
        state: State[Any],
        *,
        force: bool = False,
        source: str | None = None,
        renamed: bool = False,
        pending_since: int | None = None,
    ) -> Answer:
        """Make `state` the task run's, if the transition table or `force` allows it; see ``LiveRun.propose_task``."""
        present = task_run.state
        cell = "A" if force else task_verdict(present, state)
        if cell != "A":
            status = Answer.ABORT if cell == "B" else Answer.REJECT
            return Answer(status, present, f"a task run in state {present} cannot go to {state.type.value}")
        at = 0 if present is None else present.at
        with self._lock:
            if task_run.id not in self._runs:
                self._runs[task_run.id] = task_run
                self._states[task_run.id] = []
                if len(self._runs) > self.LIMIT:
                    oldest, _ = self._runs.popitem(last=False)
                    del self._states[oldest]
                    self._asset_notes.pop(oldest, None)
            states = [state] if pending_since is None else [_pending(task_run, pending_since), state]
            for each in states:
                each.at = max(each.at, at + 1)
                at = each.at
                task_run.enter(each)
                self._states[task_run.id].append(each)
        task_run.recorded = True
        if self._bus.has_subscribers(task_run.text):
            told = ({"k": "state", "run": task_run.text, "type": each.type.value, "name": each.name} for each in states)
            self._bus.publish([Record(task_run.text, 0, None, state.at, "state", data) for data in told])
        return Answer(Answer.ACCEPT, state)

    def create_tasks(self, created: Sequence[tuple[TaskRun, State[Any], str | None]]) -> None:
        """Create many task runs."""
        for task_run, state, _ in created:
            self.propose_task(task_run, state)

    def note(self, task_run: TaskRun, what: str, *more: dict[str, Any]) -> None:
        """Remember what is listed: a rollback and what concerns assets. (What was committed matters to a
        re-execution only, and there is none outside of flows.)"""
        with self._lock:
            states = self._states.get(task_run.id)
            if states is None:
                return
            at = max(now_us(), states[-1].at + 1)
            if what == "rolled_back":
                states.append(rolled_back_state(at, None, task_run.id))
            elif what == "asset":
                notes = self._asset_notes.setdefault(task_run.id, [])
                notes.extend(note_record(task_run.text, what, at, each) for each in more)

    def sync(self) -> None:
        """Nothing to wait for."""

    def find(self, run_id: UUID) -> TaskRun | None:
        """The task run, if it is among the latest."""
        with self._lock:
            return self._runs.get(run_id)

    def states(self, run_id: UUID) -> list[State[Any]]:
        """Its states, in order."""
        with self._lock:
            return list(self._states.get(run_id, ()))

    def asset_notes(self, run_id: UUID | None = None) -> list[dict[str, Any]]:
        """What was noted about assets, by one run or by all that are remembered."""
        with self._lock:
            lists = self._asset_notes.values() if run_id is None else [self._asset_notes.get(run_id, [])]
            return [note for notes in lists for note in notes]


def _pending(task_run: TaskRun, since: int) -> State[Any]:
    state: State[Any] = Pending()
    state.at = since
    state.state_details.task_run_id = task_run.id
    return state

# SPDX-License-Identifier: Apache-2.0
"""A run that this process works on: the one place where something is decided and appended.

:class:`LiveRun` holds the fold of one log beside the mutex that covers *decide, encode, append*. Inside
a process threads never conflict because of the mutex; between processes the store refuses an append
whose expected position has passed (Conflict), and the proposer reads what others wrote, folds it and
decides again. Nothing between deciding and appending waits for anything but that (invariant I6), no user
code runs under the mutex (I9), and what was appended is published after the mutex is released (I1).

The mutex of a run guards its fold, ``live``, ``handed_back`` and ``_calls``. It is the only lock held
when a store takes its own; nobody takes it while holding a store's.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from .._kept import KeptResult, keep
from .._waits import StopSignal, now_us, to_datetime
from ..events import Record
from ..exceptions import Abort, Conflict, Fenced, LogError, NoSpace, StorageError
from ..states import AwaitingRetry, State, StateType, Value
from ..transitions import flow_verdict, task_verdict
from .fold import Run, TaskHistory, note_record, state_record, task_record
from .objects import FINAL

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence
    from uuid import UUID

    from ..stores import Store
    from .objects import FlowRun, TaskRun

#: a map's creation records are cut into lines of this many task runs and upstreams: far below a line's 1 MiB
BATCH = 500


class Answer:
    """What a proposal came to: ``status``, the run's ``state`` now, the ``reason`` and, for WAIT, ``seconds``."""

    __slots__ = ("reason", "seconds", "state", "status")

    ACCEPT = "accept"
    REJECT = "reject"
    WAIT = "wait"
    ABORT = "abort"

    def __init__(self, status: str, state: State[Any] | None, reason: str = "", seconds: float = 0.0) -> None:
        self.status = status
        self.state = state
        self.reason = reason
        self.seconds = seconds

    @property
    def accepted(self) -> bool:
        """Whether the proposed state was appended."""
        return self.status == Answer.ACCEPT

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.state}, {self.reason!r})"


def _kept(state: State[Any], run_id: str, store: Store, name: str) -> dict[str, Any] | None:
    """The result member of a final state's record. Called before the mutex is taken: it may write a file."""
    data = state.data
    if data is None:
        return None
    if isinstance(data, KeptResult) and (entry := data.entry_for(run_id)) is not None:
        return entry  # handed on as it stands in a log
    if not isinstance(data, Value):
        return keep(data, run_id, store, name)
    return keep(data.load(), run_id, store, name, whole=data.kept_whole)


class Leaving(StopSignal):
    """Set when who works on a run is to leave it: what waits for a retry, or for its time to begin, is left to others,
    where it stands. Nothing is cancelled."""

    def is_set(self) -> bool:
        """Whether runs are to be cancelled: never."""
        return False

    def woke(self) -> None:
        """Leave the run."""
        raise Abort("its process leaves; what it waits for is left to others")


class LiveRun:
    """A run that this process owns (``token``), or to which it only addresses requests (no token)."""

    def __init__(self, run: Run, store: Store, token: str | None, *, keep_results: bool = True) -> None:
        self.run = run
        self.run_id = run.run_id
        self.store = store
        self.token = token
        self.keep_results = keep_results
        #: the claim number that this process writes under, None for requests. Never read from the fold again: who
        #: folds another's claim must not go on under its number
        self.epoch = run.epoch if token is not None else None
        self.live: dict[str, TaskRun] = {}
        self.handed_back = 0
        #: whether the attempt ends, so that what a pause holds back is not to start any more
        self.gate_closed = False
        #: set when the process that works on it is told to stop: it does not wait for a retry then
        self.leaving: Leaving | None = None
        #: the pauses, by their moment, in which code of this process waits, and acts on the deadline
        self.pausers: set[int] = set()
        #: what the last append that was refused raised: an error of ours, which is no outcome of the code that it
        #: comes out of
        self.refused: Exception | None = None
        #: what kept the disk from having all that was appended when the run was let go of
        self.unsynced: Exception | None = None
        self._synced = 0  # a position before which the disk has all; threads may set it back, which does no harm
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._calls: dict[bytes, int] = {}

    @property
    def flow_run(self) -> FlowRun:
        """The live flow run."""
        return self.run.flow_run

    # -------------------------------------------------------------------------------------- flow run

    def propose(
        self,
        state: State[Any],
        *,
        force: bool = False,
        release: bool = False,
        only_from: Container[StateType] | None = None,
    ) -> Answer:
        """Propose a state of the flow run; appended if the transition table, or `force`, says so.

        `only_from` names the types of state that the proposer believes the run to be in: when others have put it
        into another one meanwhile (paused, suspended, cancelling), the proposal is rejected.

        With `release`, a final state and the owner's letting go are one line: no reader finds a finished
        run that still has an owner. Dying before this append leaves the run to be taken over; dying after
        it leaves nothing undone."""
        name = self.flow_run.flow_name
        result = None
        if state.type in FINAL and self.keep_results:
            result = self._kept(state, name)

        def decide() -> tuple[Answer, list[dict[str, Any]]]:
            answer = self._judge(state, force)
            present = self.flow_run.state
            if only_from is not None and present is not None and present.type not in only_from:
                answer = Answer(Answer.REJECT, present, f"the run is in state {present}")
            chosen = answer.state
            if answer.status in (Answer.WAIT, Answer.ABORT) or chosen is None or chosen is self.flow_run.state:
                return answer, []
            bodies = [self.record_of(chosen, result if chosen is state else None)]
            if release and chosen.type in FINAL and self.token is not None:
                bodies.append(self._release())
                if present is not None and not present.is_final():
                    bodies[-1]["books"] = self.run.books(chosen.at)
            return answer, bodies

        answer: Answer = self._transition(decide)
        return answer

    def record_of(self, state: State[Any], result: dict[str, Any] | None = None) -> dict[str, Any]:
        """The record of a state that the flow run is about to enter; its moment is later than the present one's."""
        before = self.flow_run.state
        if before is not None and state.at <= before.at:
            state.at = before.at + 1
        return state_record(state, None, result)

    def decide(self, decision: Callable[[], tuple[Answer, list[dict[str, Any]]]]) -> Answer:
        """Append what `decision` says, which looks at ``run`` and is asked again when somebody else was faster. It
        runs under the mutex: it must not wait, and what it raises means that nothing was appended."""
        answer: Answer = self._transition(decision)
        return answer

    def _judge(self, state: State[Any], force: bool) -> Answer:
        """Look the proposal up in the table; ``state`` of the answer is what is to be appended."""
        flow_run, present = self.flow_run, self.flow_run.state
        cell = "A" if force and not _too_late(state, present) else flow_verdict(present, state)
        if cell == "O":
            cell = "A" if self.token is not None and present is not None and not present.is_running() else "R"
        if cell == "F":
            cell = self._retry_cell(state)
        if cell == "A":
            return Answer(Answer.ACCEPT, state)
        reason = f"a run in state {present} cannot go to {state.type.value}"
        if cell == "W" and present is not None:
            due = present.state_details.scheduled_time
            seconds = 0.0 if due is None else max(0.0, due.timestamp() - now_us() / 1e6)
            return Answer(Answer.WAIT, present, "the run is scheduled for later", seconds)
        if cell == "B":
            return Answer(Answer.ABORT, present, reason)
        if cell == "RETRY":
            due = to_datetime(now_us() + int(float(flow_run.empirical_policy.get("retry_delay") or 0) * 1e6))
            return Answer(Answer.REJECT, AwaitingRetry(scheduled_time=due, message=state.message), "a retry is left")
        if cell.startswith("R:"):
            return Answer(Answer.REJECT, State(cell[2:], message=reason), reason)
        return Answer(Answer.REJECT, present, reason)

    def _retry_cell(self, state: State[Any]) -> str:
        flow_run = self.flow_run
        left = flow_run.attempt < int(flow_run.empirical_policy.get("retries") or 0)
        return "RETRY" if left and state.state_details.retriable is not False else "A"

    def _release(self) -> dict[str, Any]:
        record: dict[str, Any] = {"k": "release"}
        if self.handed_back:
            record["handed_back"] = self.handed_back
        return record

    def rename(self, name: str) -> None:
        """Give the flow run its own name. Precedes RUNNING; a death in between leaves the generated name."""

        def decide() -> tuple[None, list[dict[str, Any]]]:
            return None, [{"k": "rename", "name": name}]

        self._transition(decide)

    def release(self) -> None:
        """Let go of the run: append the owner's release unless one stands, and forget the open log. Dying
        before the append is harmless: a dead owner's claim is as good as released."""
        if self._pid != os.getpid() or self.token is None:
            return
        self._sync_at_last()
        token, self.token = self.token, None
        let_go = self.store.disown
        try:
            with self._lock:
                self._append_release()
            let_go = self.store.released
        except Fenced:  # somebody took the run meanwhile
            pass
        finally:
            let_go(token)
            self.store.close(self.run_id)

    def _append_release(self) -> None:
        while self.run.owner is not None:
            run, body = self.run, self._release()
            try:
                run.position = self.store.append(self.run_id, [body], expect=run.position, epoch=self.epoch)
                return
            except Conflict:  # a request came in between
                self._catch_up()

    def abandon(self) -> None:
        """Forget the run without a word in its log: the store refused the last append, or fenced us.

        Known hole: a token is a process's, and lives while the process owns other runs. Until these have ended, other
        processes see this run as running; ``--steal`` takes it."""
        if self._pid != os.getpid() or self.token is None:
            return
        self._sync_at_last()
        token, self.token = self.token, None
        self.store.disown(token)
        self.store.close(self.run_id)

    # ------------------------------------------------------------------------------------- task runs

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
        """Propose a state of a task run; its creation, or its new name, goes into the same line. A run that nobody
        could observe until now is recorded as PENDING at `pending_since`, in microseconds, before that.

        Precedes the user's code (RUNNING) or the return to the caller (a final state). Dying before a final
        state is appended, the call runs again; dying after it, its result is handed back."""
        run_id = task_run.text
        result = None
        if state.type in FINAL and self.keep_results:
            result = self._kept(state, task_run.task_key)

        def decide() -> tuple[Answer, list[dict[str, Any]]]:
            if self.run.tasks:
                self._take_in(task_run)
            present = task_run.state
            cell = "A" if force and not _too_late(state, present) else task_verdict(present, state)
            if cell != "A":
                status = Answer.ABORT if cell == "B" else Answer.REJECT
                return Answer(status, present, f"a task run in state {present} cannot go to {state.type.value}"), []
            if state.type is StateType.RUNNING and (refusal := self._refusal(task_run)) is not None:
                return refusal, []
            at = 0 if present is None else present.at
            bodies: list[dict[str, Any]] = []
            if not task_run.recorded:
                bodies.append(task_record(task_run, source, pending_since))
                if pending_since is not None:
                    at = pending_since
                    task_run.begin(at)
            elif renamed:
                bodies.append({"k": "rename", "run": run_id, "name": task_run.name})
            if state.at <= at:
                state.at = at + 1
            bodies.append(state_record(state, run_id, result))
            return Answer(Answer.ACCEPT, state), bodies

        answer: Answer = self._transition(decide, ((task_run, state),))
        return answer

    def _refusal(self, task_run: TaskRun) -> Answer | None:
        """Why a task run may not enter RUNNING now, if so. While the flow run is paused, what has begun goes on, its
        retries too; what has not is to wait."""
        state, present = self.flow_run.state, task_run.state
        if (state is not None and state.type is StateType.RUNNING) or self.run.is_task:
            return None
        reason = f"its flow run is in state {state}"
        if state is None or not state.is_paused() or state.is_suspended():
            return Answer(Answer.ABORT, present, reason)
        if task_run.text in self.live and present is not None and present.type is not StateType.PENDING:
            return None
        return Answer(Answer.WAIT, present, reason)

    def _kept(self, state: State[Any], name: str) -> dict[str, Any] | None:
        try:
            return _kept(state, self.run_id, self.store, name)
        except NoSpace as refused:
            self._note_refusal(refused)
            raise

    def _note_refusal(self, refused: Exception) -> None:
        self.refused = refused
        if isinstance(refused, NoSpace):  # there may be several, of several threads
            refused.stopped_a_run = True

    def _take_in(self, task_run: TaskRun) -> None:
        """Bring the object up to what the fold knows of it: an interrupt may have fallen between an append and its
        being made so in memory, and the next append finds that out by a Conflict."""
        history = self.run.tasks.get(task_run.text)
        if history is None or not history.caught_up:
            return
        history.caught_up = False
        task_run.recorded = True
        for state in self.run.task_states(task_run.text):
            if task_run.state is None or state.at > task_run.state.at:
                task_run.enter(state)

    def _take_in_state(self, record: dict[str, Any]) -> None:
        history = self.run.tasks.get(record["run"])
        if history is not None:
            history.caught_up = True
        task_run = self.live.get(record["run"])
        if task_run is not None and (task_run.state is None or record["at"] > task_run.state.at):
            task_run.enter(self.run.task_state(record, task_run.id, task_run.name))

    def create_tasks(self, created: Sequence[tuple[TaskRun, State[Any], str | None]]) -> None:
        """Create many task runs, :data:`BATCH` to a line. Precedes their being submitted: dying before it,
        nobody knows of them; dying after it, they are pending and a re-execution finds and runs them."""
        for part in _parts(created):
            bodies: list[dict[str, Any]] = []
            for task_run, state, source in part:
                bodies.append(task_record(task_run, source, state.at))

            def decide(bodies: list[dict[str, Any]] = bodies) -> tuple[None, list[dict[str, Any]]]:
                return None, bodies

            self._transition(decide, [(task_run, state) for task_run, state, _ in part])

    def note(self, task_run: TaskRun, what: str, *more: dict[str, Any]) -> None:
        """Append that something happened around a task run, which changes no state; one record for each of `more`.

        ``committed`` follows the commit: dying before it, whoever hands the call back commits it again.
        ``rolled_back`` follows the rollback hooks: dying before it, they are run again by a rollback of the
        re-execution. ``asset`` follows the final state and tells others: dying before it, the event is lost.
        A run that this process has let go of meanwhile hears no more notes."""
        if self.token is None:
            return

        def decide() -> tuple[None, list[dict[str, Any]]]:
            at = now_us() if task_run.state is None else max(now_us(), task_run.state.at + 1)
            return None, [note_record(task_run.text, what, at, each) for each in more or ({},)]

        self._transition(decide)

    def append_reported(self, pieces: Iterable[list[dict[str, Any]]], files: Iterable[bytes]) -> None:
        """Append what a worker recorded of the calls that a task of this run made there, a piece to a line.

        Precedes the end of the attempt that made them: dying before it, they were not logged and run again with
        it; dying after it, those that ended are handed back."""
        for data in files:
            try:
                self.store.put_result(self.run_id, data)
            except NoSpace as refused:
                self._note_refusal(refused)
                raise
        for bodies in pieces:

            def decide(bodies: list[dict[str, Any]] = bodies) -> tuple[None, list[dict[str, Any]]]:
                return None, bodies

            self._transition(decide)

    def _entered(self, task_run: TaskRun, state: State[Any]) -> None:
        task_run.recorded = True
        task_run.enter(state)
        if self.run.is_task and task_run.text == self.run_id:
            self.run.stand_for(state)
        elif state.type is StateType.RUNNING:
            task_run.flow_run_run_count = self.flow_run.run_count
        if state.type in FINAL:
            self.live.pop(task_run.text, None)
        else:
            self.live[task_run.text] = task_run

    # --------------------------------------------------------------------------------- append, in one place

    def _transition(
        self,
        decide: Callable[[], tuple[Any, list[dict[str, Any]]]],
        entering: Sequence[tuple[TaskRun, State[Any]]] = (),
    ) -> Any:
        """Decide, append, make it so in memory, publish. Decides again after a Conflict. `entering` are the task
        runs that the transition is about, each with its new state."""
        if self.token is None or self._pid != os.getpid():
            self._check_process()
        while True:
            with self._lock:
                answer, bodies = decide()
                if not bodies:
                    return answer
                position = self.run.position
                try:
                    self.run.position = self.store.append(self.run_id, bodies, expect=position, epoch=self.epoch)
                except Conflict:
                    self._catch_up()
                    continue
                except (LogError, StorageError) as refused:
                    self._note_refusal(refused)
                    raise
                for task_run, state in entering:
                    self._entered(task_run, state)
                if not entering:
                    self._apply(bodies, answer)
            if self.store.bus.has_subscribers(self.run_id):
                self._publish(bodies, position)
            return answer

    def _apply(self, bodies: list[dict[str, Any]], answer: Answer | None) -> None:
        """What a transition of the flow run changes in the fold; the state object itself becomes the present
        one, so that its data need not be read back."""
        for body in bodies:
            if body["k"] == "state" and answer is not None and answer.state is not None:
                if "run" not in body:
                    answer.state.state_details.flow_run_id = self.flow_run.id
                    self.run.enter(answer.state)
            elif body["k"] in ("release", "rename", "input") and "run" not in body:
                getattr(self.run, "_" + body["k"])(body, None)

    def _catch_up(self) -> None:
        """Fold what other processes appended."""
        reading = self.store.read(self.run_id, self.run.position)
        reading.check()
        self.run.fold(reading.records)
        self.run.position = reading.position
        for record in reading.records:
            if record.kind == "state" and "run" in record.data:
                self._take_in_state(record.data)

    def refresh(self) -> bool:
        """Fold what other processes appended since the last append or refresh; whether there was anything."""
        with self._lock:
            before = self.run.position
            self._catch_up()
            return self.run.position > before

    def _publish(self, bodies: list[dict[str, Any]], position: int) -> None:
        now, epoch = now_us(), self.epoch
        self.store.bus.publish([Record(self.run_id, position, epoch, now, body["k"], body) for body in bodies])

    def _check_process(self) -> None:
        """A child made by fork holds a copy of this object, but not the run (I12)."""
        if self._pid != os.getpid():
            raise Fenced(
                f"process {os.getpid()} was forked from {self._pid}, which owns flow run {self.run_id}; "
                f"a forked child cannot append to its parent's run"
            )
        if self.epoch is not None and self.token is None:
            raise Fenced(f"this process has let go of run {self.run_id}; what goes on there is not recorded")

    @property
    def must_sync(self) -> bool:
        """Whether a claim or a final state has to be on the disk before anybody acts on it."""
        return self.store.durability == "disk"

    def sync(self, position: int | None = None) -> None:
        """Return when the disk has all that was appended, or all before `position` (``durability=disk``); otherwise at
        once. Of a run that this process has let go of the disk has all, unless that failed then: it is raised again."""
        position = self.run.position if position is None else position
        if position <= self._synced:
            return
        if self.epoch is not None and self.token is None:
            if self.unsynced is not None:
                raise self.unsynced
            return
        try:
            self.store.sync(self.run_id, position)
        except (LogError, StorageError) as refused:
            self._note_refusal(refused)
            raise
        self._synced = max(self._synced, position)

    def _sync_at_last(self) -> None:
        """Before the run is let go of: futures of its task runs may be looked at later."""
        if self.must_sync:
            try:
                self.sync()
            except (LogError, StorageError) as error:  # told to those who look
                self.unsynced = error

    # ------------------------------------------------------------------------------ identity of calls (I13)

    def occurrence(self, call: bytes) -> int:
        """How many times this call was made before in this attempt: 0, 1, … Counted in the order of the
        calling code, so two identical calls of one execution are two runs."""
        with self._lock:
            number = self._calls.get(call, 0)
            self._calls[call] = number + 1
        return number

    def calls_made(self) -> dict[bytes, int]:
        """How many times each call was made in this attempt; for a worker that goes on counting elsewhere."""
        return self._calls

    def begin_attempt(self) -> None:
        """Count occurrences anew: a flow retry is a new attempt."""
        self.gate_closed = False
        with self._lock:
            self._calls.clear()

    def close_gate(self) -> None:
        """Let what a pause holds back know that it is not to start any more: the attempt ends."""
        self.gate_closed = True
        state = self.flow_run.state
        if state is not None and state.type is StateType.PAUSED:
            closing = Record(self.run_id, self.run.position, self.epoch, now_us(), "closing", {})
            self.store.bus.publish([closing])

    def recorded_call(self, run_id: UUID) -> TaskHistory | None:
        """What the log of an earlier execution holds of this call."""
        return self.run.tasks.get(str(run_id)) if self.run.tasks else None

    def take_back(self, run_id: UUID) -> None:
        """Count one ended call that is handed back without being run."""
        with self._lock:
            self.handed_back += 1


def _too_late(state: State[Any], present: State[Any] | None) -> bool:
    """Whether a crash is to be recorded of a run that has ended: an interrupt after a final state changes nothing
    (I5), also when it fell between the append of that state and the moment when memory had it."""
    return state.type is StateType.CRASHED and present is not None and present.type in FINAL


def _parts(created: Sequence[tuple[TaskRun, State[Any], str | None]]) -> Iterator[list[Any]]:
    """Cut what is to be created into parts that each fit into a line."""
    part: list[Any] = []
    weight = 0
    for each in created:
        task_run = each[0]
        text = len(task_run.name) + sum(map(len, task_run.tags)) + sum(map(len, task_run.task_inputs))
        own_weight = 1 + text // 60 + sum(map(len, task_run.task_inputs.values()))
        if part and weight + own_weight > BATCH:
            yield part
            part, weight = [], 0
        part.append(each)
        weight += own_weight
    if part:
        yield part

# SPDX-License-Identifier: Apache-2.0
"""What is asked of a flow run: to pause, to be suspended, to go on, to stop.

A request is one line in the run's log, appended by whoever asks: the run's own process, another thread of it, or
another process, which owns nothing. Each is decided under the mutex of the fold that it is appended to, and again
after every Conflict, so that of any number of concurrent resumes exactly one wins, and a pause, its schema and its
deadline are one atom. The run's process learns of it by the bus (same process), by the follower (while it waits), or by
the Conflict of its own next append: a request always stands in the log before that.

Who acts on a deadline: the process that is paused, as long as it lives; else whoever comes next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..exceptions import FlowPauseTimeout, NotPausedError
from ..states import Cancelled, Cancelling, Failed, Running, Scheduled, State
from ..transitions import is_expired
from .fold import PAUSE_EXPIRED as PAUSE_EXPIRED
from .live import Answer, LiveRun

if TYPE_CHECKING:
    from collections.abc import Callable

    Bodies = list[dict[str, Any]]

_PAUSE_ENDED = "The pause ended without a resume."
_PAUSE_GIVEN_UP = "The code that paused the run waits no more."


def pause(live: LiveRun, state: State[Any], inputs: Bodies) -> Answer:
    """Ask for PAUSED, `inputs` (schema and description of what is asked for) in the same line. Precedes the wait for a
    resume: dying before it, the code runs again and asks anew; dying after it, a resume starts the run again from the
    top, and the pause, whose key is known then, is passed.

    REJECT with RUNNING as the state when the key is known, else with the state that is in the way."""

    def decision() -> tuple[Answer, Bodies]:
        present = live.flow_run.state
        if present is None or not present.is_running():
            return Answer(Answer.REJECT, present, f"the run is in state {present}"), []
        key = state.state_details.pause_key
        if key in live.run.pause_keys:
            return Answer(Answer.REJECT, present, f"the pause {key!r} was passed before"), []
        return Answer(Answer.ACCEPT, state), [live.record_of(state), *inputs]

    return live.decide(decision)


def expire(live: LiveRun, paused: State[Any], *, again: bool = False) -> Answer:
    """End the pause `paused` without a resume, if it still stands: the run goes on. By the owner, who then raises in
    the paused code; dying in between, the pause counts as passed. With `again` it was not waited for to its end, and is
    made again when the code that makes it runs again."""

    def decision() -> tuple[Answer, Bodies]:
        present = live.flow_run.state
        if present is None or present.at != paused.at:
            return Answer(Answer.REJECT, present, "the pause has ended"), []
        state: State[Any] = Running(message=_PAUSE_GIVEN_UP if again else _PAUSE_ENDED)
        if again:
            state.state_details.pause_key = paused.state_details.pause_key
            state.state_details.pause_reschedule = True
        return Answer(Answer.ACCEPT, state), [live.record_of(state)]

    return live.decide(decision)


def fail_expired(live: LiveRun, is_alive: Callable[[LiveRun], bool]) -> Answer:
    """Record that a paused run was not resumed in time, if no process waits for that itself. By whoever comes next;
    dying before it, the next one does it, and readers see it as FAILED all the same."""

    def decision() -> tuple[Answer, Bodies]:
        present = live.flow_run.state
        if present is None or not present.is_paused() or not is_expired(present):
            return Answer(Answer.REJECT, present, "the run is in no pause whose time has passed"), []
        if is_alive(live) and not present.is_suspended():
            return Answer(Answer.REJECT, present, "the process that is paused acts on its deadline"), []
        failed: State[Any] = Failed(message=PAUSE_EXPIRED)
        return Answer(Answer.ACCEPT, failed), [live.record_of(failed)]

    return live.decide(decision)


def _was_left_expired(states: list[State[Any]]) -> bool:
    """Whether the latest pause ended at its deadline, so that a resume of it comes too late."""
    latest = next((n for n in reversed(range(len(states) - 1)) if states[n].is_paused()), None)
    return latest is not None and states[latest + 1].message == _PAUSE_ENDED


def resume(
    live: LiveRun,
    is_alive: Callable[[LiveRun], bool],
    answer_of: Callable[[State[Any]], Bodies],
    why_not_restartable: Callable[[LiveRun], str | None],
) -> Answer:
    """Let a paused run go on: RUNNING where its process waits, else ``Resuming``, for a process that runs it again.

    Precedes the pauser's going on; dying before it, the run stays paused. `answer_of` checks what was given for the
    pause and makes it the records that stand in the same line; it raises when it does not fit. NotPausedError for a
    run that is not paused, FlowPauseTimeout after the deadline, RuntimeError when it cannot be run again."""
    run_id = live.run_id

    def decision() -> tuple[Answer, Bodies]:
        present = live.flow_run.state
        alive = is_alive(live)
        orphaned = not alive and present is not None and (live.run.owner is not None or present.is_running())
        paused = present is not None and present.is_paused()
        if present is None or present.is_final() or not (paused or (orphaned and not present.is_cancelling())):
            if live.run.states and _was_left_expired(live.run.states):
                return Answer(Answer.REJECT, present, PAUSE_EXPIRED), []
            raise NotPausedError(f"Cannot resume a run that isn't paused: flow run {run_id} is in state {present}")
        waits_here = paused and alive and not present.is_suspended()
        if paused and is_expired(present):
            if waits_here:
                return Answer(Answer.REJECT, present, PAUSE_EXPIRED), []
            failed: State[Any] = Failed(message=PAUSE_EXPIRED, data=None)
            return Answer(Answer.REJECT, failed, PAUSE_EXPIRED), [live.record_of(failed)]
        answer = answer_of(present) if paused else []
        if waits_here:
            state: State[Any] = Running()
        else:
            reason = why_not_restartable(live)
            if reason is not None:
                raise RuntimeError(f"Cannot resume this run: flow run {run_id} cannot be run again: {reason}")
            state = Scheduled(name="Resuming")
        state.state_details.pause_key = present.state_details.pause_key
        return Answer(Answer.ACCEPT, state), [live.record_of(state), *answer]

    decided = live.decide(decision)
    if not decided.accepted:
        raise FlowPauseTimeout(f"flow run {run_id} can no longer be resumed: {PAUSE_EXPIRED}")
    _sync(live)
    return decided


def why_not_restartable(live: LiveRun) -> str | None:
    """Why no process can run the flow run again from its log, as a clause; None when one can."""
    if live.flow_run.parent_flow_run_id is not None:
        return "it is a subflow, which is run again by its parent"
    if live.flow_run.entrypoint is None:
        return "its flow cannot be imported by another process"
    if live.run.header.get("parameters") is None:
        return f"its parameters could not be kept; they were {live.flow_run.parameters}"
    return None


def suspend(live: LiveRun, state: State[Any], inputs: Bodies) -> Answer:
    """Ask for Suspended, like :func:`pause`; a run that is suspended already stays as it is, which is accepted."""

    def decision() -> tuple[Answer, Bodies]:
        present = live.flow_run.state
        if present is not None and present.is_suspended():
            return Answer(Answer.ACCEPT, present), []
        if present is None or not present.is_running():
            return Answer(Answer.REJECT, present, f"the run is in state {present}"), []
        if state.state_details.pause_key in live.run.pause_keys:
            return Answer(Answer.REJECT, present, "the suspension was passed before"), []
        return Answer(Answer.ACCEPT, state), [live.record_of(state), *inputs]

    answer = live.decide(decision)
    _sync(live)
    return answer


def cancel(live: LiveRun, is_alive: Callable[[LiveRun], bool]) -> Answer:
    """Ask a run to stop: CANCELLING where a process works on it, CANCELLED at once where none does."""

    def decision() -> tuple[Answer, Bodies]:
        present = live.flow_run.state
        if present is None or present.is_final():
            return Answer(Answer.REJECT, present, f"the run has ended as {present}"), []
        working = is_alive(live) and not present.is_suspended()
        if present.is_cancelling() and working:
            return Answer(Answer.ACCEPT, present), []
        state: State[Any] = Cancelling() if working else Cancelled(message="It was cancelled while nobody ran it.")
        return Answer(Answer.ACCEPT, state), [live.record_of(state)]

    answer = live.decide(decision)
    _sync(live)
    return answer


def _sync(live: LiveRun) -> None:
    """Where durability says so, nobody acts on a request before the disk has it."""
    if live.must_sync:
        live.sync()

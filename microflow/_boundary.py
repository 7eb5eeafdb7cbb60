# SPDX-License-Identifier: Apache-2.0
"""Boundaries: where a run looks whether it was asked to stop, and where it waits while it is paused.

User code is never interrupted between boundaries. They are: a task call, submit, map, the call of a subflow, a pause,
the end of the body. At each of them the log is consulted, mostly by appending to it: the append of somebody else's
request makes ours a Conflict, and deciding again finds the request. A subflow looks at its callers too, whose logs it
does not append to.

What a boundary raises is a signal (``Pause``: the run is suspended; ``Abort``: it is to be cancelled), which user code
that catches Exception does not swallow; who swallows BaseException meets the next boundary, at the latest the end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ._waits import StopSignal, now_us, to_us
from .client.news import News
from .client.requests import expire
from .context import FlowRunContext
from .exceptions import Abort, MicroflowSignal, Pause
from .transitions import is_expired

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._waits import Waits
    from .client.live import LiveRun
    from .states import State


def stop_signal(live: LiveRun) -> MicroflowSignal | None:
    """What ends the body of a run, by the state that the fold has now; None while the body may go on."""
    state = live.flow_run.state
    if state is None or state.is_running() or (state.is_paused() and not state.is_suspended()):
        return None
    if state.is_left():
        return Pause(f"flow run {live.flow_run.name!r} is suspended", state=state)
    return Abort(f"flow run {live.flow_run.name!r} cannot go on: it is in state {state}")


def callers_signal(context: FlowRunContext) -> MicroflowSignal | None:
    """What ends the body of a subflow because a run that called it was asked to stop. Reads their logs."""
    for caller in context.callers():
        caller.live.refresh()
        signal = stop_signal(caller.live)
        if signal is not None:
            return signal
    return None


def check_boundary(context: FlowRunContext) -> None:
    """Raise what ends the body of the run, if it or a caller was asked to stop."""
    signal = stop_signal(context.live) or callers_signal(context)
    if signal is not None:
        raise signal


def check_after_wait(timed_out: bool) -> None:
    """Raise what ends the body of the current run, if it was asked to stop while it waited: in place of what the wait
    came to. Only a wait that came to nothing takes the time to look into the log."""
    context = FlowRunContext.get()
    if context is None:
        return
    if timed_out:
        context.live.refresh()
    state = context.flow_run.state
    # a hook may wait as well, and its run has ended
    if (timed_out or state is None or not state.is_running()) and not (state is not None and state.is_final()):
        check_boundary(context)


def is_held(state: State[Any] | None) -> bool:
    """Whether a flow run in this state starts nothing new, and goes on later in this process."""
    return state is not None and state.is_paused() and not state.is_suspended()


def deadline_of(state: State[Any]) -> float | None:
    """The deadline of a pause by the monotonic clock."""
    due = to_us(state.state_details.pause_timeout)
    return None if due is None else time.monotonic() + max(0.0, (due - now_us()) / 1e6)


async def until_due(
    live: LiveRun, waits: Waits, due: int, is_over: Callable[[], bool], told: StopSignal | None = None
) -> None:
    """Wait for a moment of the wall clock, in microseconds, or until `is_over`, which is asked when something happens
    to the flow run and when somebody is `told` to stop: a run that waits for its retry may be cancelled."""
    stop = [StopSignal()]

    def wake(_: object) -> None:
        stop[0].set()

    end = live.store.bus.subscribe(live.run_id, wake)
    if told is not None:
        told.add_done_callback(wake)
    try:
        with live.store.follow(live.run_id, live.run.position):
            while (left := (due - now_us()) / 1e6) > 0:
                live.refresh()  # after the signal was made: what comes from now on sets it
                if is_over():
                    return
                if told is not None and told.told:
                    told.woke()
                await waits.sleep(left, stop[0])
                stop[0] = StopSignal()
    finally:
        end()
        if told is not None:
            told.forget(wake)


async def released(live: LiveRun, waits: Waits) -> None:
    """Wait until a paused flow run goes on or is to stop, or its runner is left. A submitted run that waits here keeps
    its slot: another one in its place would only be held as well.

    A pause that nobody waits in (an operator's) ends here at its deadline."""
    with News([live]) as news:
        while True:
            live.refresh()
            state = live.flow_run.state
            if state is None or not is_held(state) or live.gate_closed:
                return
            await news.next(waits, deadline_of(state), keep_slot=True)
            if is_expired(state) and state.at not in live.pausers:
                expire(live, state)

# SPDX-License-Identifier: Apache-2.0
"""How running code pauses its flow run, and how it leaves when it suspends it.

A pause is one record: key, deadline, and what is asked for. The code that pauses then waits for news of the run: a
resume in this process arrives by the bus, one of another process by the follower, within 10 ms. Nothing polls the log's
content, and no time limit of the user's is exceeded by a look.

The rule: *a run is PAUSED only while somebody waits in a pause* (or an operator said so). Whatever ends the wait ends
the pause: the resume did already; at the deadline the waiting code records RUNNING, then raises FlowPauseTimeout where
it paused; an exception out of the wait (a timeout of the flow, a cancelled asyncio task) records RUNNING, too. Two
pieces of code that pause at once wait in turn, each with a pause of its own.

The exception: a worker that is told to stop, or a Lambda invocation whose time is up, leaves a run that pauses outside
of its tasks and subflows as it is, without an owner. Whoever resumes it has it run again, as one whose process was
killed.

A suspension is the same record with another name; then ``Pause`` is raised through the body. What was passed is known
by its key when the run is executed again: keys are counted in each attempt, so code that pauses under a condition does
well to name them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ._boundary import callers_signal, is_held, stop_signal
from ._waits import now_us, to_datetime
from .client.news import News
from .client.requests import PAUSE_EXPIRED, expire, pause, suspend
from .context import FlowRunContext, TaskRunContext
from .entrypoints import why_not_importable
from .exceptions import FlowPauseTimeout, LogError, MicroflowException, Pause, StorageError
from .logging import flow_run_logger
from .states import Paused, State, Suspended

if TYPE_CHECKING:
    from ._waits import Waits
    from .client.live import Answer, LiveRun


def check_timeout(timeout: float | None) -> None:
    """TypeError or ValueError before anything is recorded."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, got {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout must not be negative, got {timeout!r}")


def current_flow_run(what: str) -> FlowRunContext:
    """The context of the flow run whose code calls; RuntimeError when there is none."""
    context = FlowRunContext.get()
    if context is None:
        raise RuntimeError(f"Flow runs can only be {what} from within a flow run.")
    return context


async def pause_here(
    context: FlowRunContext, waits: Waits, timeout: float | None, key: str | None, asks_for: Any = None
) -> State[Any]:
    """Pause the run until it is resumed; gives the state of the pause, not entered when it was passed before.
    `asks_for` is the class of the input that the pause asks for."""
    live = context.live
    number = context.count_pause()
    key = key or number
    with News([live, *(caller.live for caller in context.callers())]) as news:
        while True:
            limit = None if timeout is None else to_datetime(now_us() + int(timeout * 1e6))
            paused: State[Any] = Paused(pause_expiration_time=limit, pause_key=key)
            answer = pause(live, paused, question_of(asks_for, paused))
            if answer.accepted:
                break
            _check_can_pause(context, answer, "paused")
            if not is_held(answer.state):
                return paused
            await _next_news(context, waits, news, None)
        logger = flow_run_logger(context.flow_run)
        logger.info("Pausing flow, execution will continue when this flow run is resumed.")
        live.pausers.add(paused.at)
        if live.must_sync:
            await waits.block(live.sync)
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = False
        leaving = live.leaving if TaskRunContext.get() is None else None
        if leaving is not None:
            leaving.add_done_callback(news.ring)
        try:
            while _stands(live, paused):
                if leaving is not None and leaving.told:
                    ended = True
                    raise Pause("its process leaves; the paused run is left to whoever resumes it", state=paused)
                await _next_news(context, waits, news, deadline)
                late = deadline is not None and time.monotonic() >= deadline
                if late and expire(live, paused).accepted:
                    raise FlowPauseTimeout(PAUSE_EXPIRED)
            ended = True
        finally:
            live.pausers.discard(paused.at)
            if leaving is not None:
                leaving.forget(news.ring)
            if not ended:
                _give_up(live, paused)
    logger.info("Resuming flow run execution!")
    return paused


def _stands(live: LiveRun, paused: State[Any]) -> bool:
    """Whether the pause goes on. Raises what ends the body when something else than a resume ended it."""
    live.refresh()
    after = next((state for state in live.run.states if state.at > paused.at), None)
    if after is None:
        return True
    if not after.is_running():
        signal = stop_signal(live)
        if signal is not None:
            raise signal
    return False


async def _next_news(context: FlowRunContext, waits: Waits, news: News, deadline: float | None) -> bool:
    """Wait for news of the run or its callers; raises when a caller was asked to stop meanwhile."""
    signal = callers_signal(context)
    if signal is not None:
        raise signal
    return await news.next(waits, deadline)


def _give_up(live: LiveRun, paused: State[Any]) -> None:
    try:
        expire(live, paused, again=True)
    except (LogError, StorageError):  # what is on its way matters more, and meets the same trouble
        pass


def _check_can_pause(context: FlowRunContext, answer: Answer, what: str) -> None:
    """Raise when the run is in a state that no pause can start from, or wait for."""
    state = answer.state
    if state is None or state.is_running() or is_held(state):
        return
    if not state.is_final():
        signal = stop_signal(context.live)
        if signal is not None:
            raise signal
    raise RuntimeError(f"Flow run cannot be {what}: {answer.reason}.")


def question_of(asks_for: Any, paused: State[Any]) -> list[dict[str, Any]]:
    """What stands in the line of a pause that asks for input."""
    if asks_for is None:
        return []
    from .input import question  # 3 ms: only for pauses that ask for something

    return question(asks_for, paused)


def input_class(wait_for_input: Any) -> Any:
    """The class of the input that a pause asks for; None for none. Made before anything is recorded."""
    if wait_for_input is None:
        return None
    from .input import run_input_subclass_from_type  # as above

    return run_input_subclass_from_type(wait_for_input)


def answered(context: FlowRunContext, asks_for: Any, paused: State[Any]) -> Any:
    """What the pause was answered. Raises what the class has against it."""
    if asks_for is None:
        return None
    from .input import answer  # as above

    context.live.refresh()
    return answer(asks_for, context.live.run, paused)


def suspend_here(
    context: FlowRunContext, timeout: float | None, key: str | None, asks_for: Any = None
) -> State[Any]:
    """Suspend the current run: raises Pause, or gives the state, not entered, when this was passed before."""
    task_context = TaskRunContext.get()
    if task_context is not None and task_context.task_run.flow_run_id == context.flow_run.id:
        raise RuntimeError("Cannot suspend task runs.")
    live = context.live
    number = context.count_pause()
    check_restartable(context)
    state: State[Any] = Suspended(timeout_seconds=timeout, pause_key=key or number)
    answer = suspend(live, state, question_of(asks_for, state))
    if not answer.accepted:
        _check_can_pause(context, answer, "suspended")
        if is_held(answer.state):
            raise RuntimeError(f"Flow run cannot be suspended: {answer.reason}.")
        return state
    flow_run_logger(context.flow_run).info("Suspending flow run, execution will be rescheduled when it is resumed.")
    raise Pause(f"flow run {context.flow_run.name!r} is suspended", state=answer.state)


def check_restartable(context: FlowRunContext) -> None:
    """RuntimeError, with the reason, when another process could not run this flow run again."""
    run, flow = context.live.run, context.flow
    if context.flow_run.parent_flow_run_id is not None:
        raise RuntimeError("Cannot suspend subflows: a subflow is run again by its parent. Suspend the parent.")
    reason = why_not_importable(flow.fn)
    if reason is None and flow.bound_names:
        reason = "it is bound to an object"
    if reason is not None:
        raise RuntimeError(
            f"Cannot suspend flow {flow.name!r}, because no other process could import it: {reason}. "
            f"Define it at the top level of a module or script."
        )
    try:
        run.parameters()
    except MicroflowException as problem:
        raise RuntimeError(
            f"Cannot suspend flow run {context.flow_run.name!r}, because no other process could run it again: {problem}"
        ) from problem

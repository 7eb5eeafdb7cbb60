# SPDX-License-Identifier: Apache-2.0
"""Pausing, suspending, resuming, cancelling flow runs, and waiting for them.

``pause_flow_run``, ``suspend_flow_run`` and ``resume_flow_run`` are plain calls in blocking code and give a coroutine
in async code, as the current run's kind says (outside of runs, whether an event loop is running); the names with an
``a`` in front are always coroutines.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ._pausing import answered, check_timeout, current_flow_run, input_class, pause_here, question_of, suspend_here
from ._waits import AsyncioWaits, BlockingWaits, check_not_alone, choose_async, dual, finish, run_coroutine
from .client.orchestration import SyncClient, current_client
from .client.waiting import until_final
from .entrypoints import load_entrypoint
from .exceptions import MicroflowException, MissingFlowError
from .flow_engine import run_to_state
from .states import Suspended

if TYPE_CHECKING:
    from uuid import UUID

    from ._waits import Waits
    from .client.fold import Run
    from .client.live import LiveRun
    from .client.objects import FlowRun
    from .flows import Flow
    from .states import State


# ------------------------------------------------------------------------------------------------- pause


def pause_flow_run(
    wait_for_input: Any = None,
    timeout: float | None = 3600,
    poll_interval: float = 10,
    key: str | None = None,
    *,
    _sync: bool | None = None,
) -> Any:
    """Pause the current flow run until somebody resumes it; no task run starts meanwhile, those that have go on.

    Callable in a flow, a subflow (only that is paused) or a task (its flow run is paused). FlowPauseTimeout is raised
    here when nobody resumed it within `timeout` seconds (None: no limit); uncaught it fails the run, without a retry.
    With `wait_for_input`, a type (a ``RunInput`` subclass, ``int``, a dataclass, a model …), the resume has to bring
    what fits it, and that is returned here; what the class itself refuses is raised here, and may be asked for again.
    A pause whose `key` was passed before in this attempt returns at once; the default key is the number of the
    pause in the attempt. A resume arrives by itself: `poll_interval` is accepted and not needed."""
    body = _pause(wait_for_input, timeout, key)
    if choose_async(_sync):
        return body(AsyncioWaits())
    check_not_alone()
    return finish(body(BlockingWaits()))


async def apause_flow_run(
    wait_for_input: Any = None, timeout: float | None = 3600, poll_interval: float = 10, key: str | None = None
) -> Any:
    """The coroutine form of :func:`pause_flow_run`."""
    return await _pause(wait_for_input, timeout, key)(AsyncioWaits())


def _pause(wait_for_input: Any, timeout: float | None, key: str | None) -> Any:
    check_timeout(timeout)
    asks_for = input_class(wait_for_input)

    async def body(waits: Waits) -> Any:
        context = current_flow_run("paused")
        return answered(context, asks_for, await pause_here(context, waits, timeout, key, asks_for))

    return body


# ----------------------------------------------------------------------------------------------- suspend


def suspend_flow_run(
    wait_for_input: Any = None,
    flow_run_id: UUID | str | None = None,
    timeout: float | None = 3600,
    key: str | None = None,
    client: Any = None,
    *,
    _sync: bool | None = None,
) -> Any:
    """Suspend the current flow run: its process is released, and any process that shares the home can go on with it
    once it is resumed. The code runs again from the top then, and what had ended is handed back.

    Raises Pause, which no ``except Exception`` catches, through the body and to the caller of the flow. RuntimeError in
    a task, in a subflow, and when the flow could not be imported or its parameters not be rebuilt by another
    process."""
    check_timeout(timeout)
    return dual(lambda: _suspend(wait_for_input, flow_run_id, timeout, key), _sync)


async def asuspend_flow_run(
    wait_for_input: Any = None,
    flow_run_id: UUID | str | None = None,
    timeout: float | None = 3600,
    key: str | None = None,
    client: Any = None,
) -> Any:
    """The coroutine form of :func:`suspend_flow_run`."""
    check_timeout(timeout)
    return _suspend(wait_for_input, flow_run_id, timeout, key)


def _suspend(wait_for_input: Any, flow_run_id: UUID | str | None, timeout: float | None, key: str | None) -> Any:
    asks_for = input_class(wait_for_input)
    if flow_run_id is None:
        context = current_flow_run("suspended")
        return answered(context, asks_for, suspend_here(context, timeout, key, asks_for))
    state: State[Any] = Suspended(timeout_seconds=timeout, pause_key=key or os.urandom(16).hex())
    current_client().suspend_flow_run(flow_run_id, state, question_of(asks_for, state))
    return None


# ------------------------------------------------------------------------------------------------ resume


def resume_flow_run(
    flow_run_id: UUID | str,
    run_input: dict[str, Any] | None = None,
    *,
    run: bool = False,
    force: bool = False,
    _sync: bool | None = None,
) -> Any:
    """Let a paused or suspended flow run go on, in whatever process it is; returns None.

    Where the run's process waits, it goes on. A suspended run, or one whose process died, is put into the queue for
    whoever serves its flow (``flow.serve``). NotPausedError when the run is not paused (any more), FlowPauseTimeout
    after the deadline of the pause, ObjectNotFound for an unknown id, RuntimeError when `run_input` does not fit what
    the pause asked for or the run cannot be run again; the run stays paused then.

    With `run`, a run that no process works on then is run here, to its end, and its final state is given. `force` runs
    here one that has FAILED, CRASHED or been CANCELLED: its failed calls are run again, its completed ones kept."""
    if choose_async(_sync):
        return aresume_flow_run(flow_run_id, run_input, run=run, force=force)
    flow = _resume(flow_run_id, run_input, run, force)
    if flow is None:
        return None
    outcome = rerun(flow, flow_run_id, force=force)
    return run_coroutine(outcome) if flow.isasync else outcome


async def aresume_flow_run(
    flow_run_id: UUID | str, run_input: dict[str, Any] | None = None, *, run: bool = False, force: bool = False
) -> State[Any] | None:
    """The coroutine form of :func:`resume_flow_run`."""
    flow = _resume(flow_run_id, run_input, run, force)
    if flow is None:
        return None
    outcome = rerun(flow, flow_run_id, force=force)
    state: State[Any] = await outcome if flow.isasync else outcome
    return state


def _resume(
    flow_run_id: UUID | str, run_input: dict[str, Any] | None, run_it: bool, force: bool
) -> Flow[Any, Any] | None:
    """Resume the run; gives the flow when it is to be run here."""
    client = current_client()
    if force:
        run = client.fold(str(flow_run_id))
        if run.flow_run.state is not None and run.flow_run.state.is_final():
            return flow_of(run, client)  # before anything is recorded
    client.resume_flow_run(flow_run_id, run_input, queue=not (run_it or force))
    if not (run_it or force):
        return None
    run = client.fold(str(flow_run_id))
    waits_to_run = run.flow_run.state is not None and run.flow_run.state.is_resuming()
    return flow_of(run, client) if waits_to_run else None


def flow_of(run: Run, client: SyncClient) -> Flow[Any, Any]:
    """The flow of a run, imported from where its log says. MissingFlowError when that cannot be, or may not be: where
    others can write to the home, a log of theirs would decide which code is run."""
    entrypoint = run.flow_run.entrypoint
    if entrypoint is None:
        raise MissingFlowError(f"flow run {run.run_id} does not say where its flow is: no other process can import it")
    if not client.store.private:
        raise MissingFlowError(
            f"others can write to {client.store.location}, so {entrypoint}, which the log of flow run {run.run_id} "
            f"names, is not imported; import the flow and call run_flow(flow, flow_run), or use the command line"
        )
    found = load_entrypoint(entrypoint)
    if not hasattr(found, "rebind"):
        raise MissingFlowError(f"{entrypoint} is no flow any more, but a {type(found).__name__}")
    flow: Flow[Any, Any] = found
    return flow


def cancel_flow_run(flow_run_id: UUID | str) -> State[Any]:
    """Ask a flow run, of whatever process, to stop; gives its state then: CANCELLING, or CANCELLED when no process runs
    it.

    A running flow notices it at its next boundary: a task call, a pause, the end of the body. What has started ends."""
    return current_client().cancel_flow_run(flow_run_id)


# ------------------------------------------------------------------------------------------------- wait


async def wait_for_flow_run(
    flow_run_id: UUID | str,
    timeout: float | None = 10800,
    poll_interval: float | None = 5,
    client: Any = None,
    log_states: bool = False,
) -> FlowRun:
    """Wait until a flow run, of whatever process, has ended; gives the run, whatever it ended in. A run whose process
    is killed meanwhile is CRASHED within about a second, unless it came from the queue: then the wait goes on, since
    whoever serves its flow takes it over. A paused or suspended run is waited for.

    FlowRunWaitTimeout after `timeout` seconds (None: never; 0 looks once), ObjectNotFound for an unknown id.
    `log_states` logs each state that is seen. The end arrives by itself: `poll_interval` is accepted and not needed, as
    is `client`."""
    return await until_final(current_client(), flow_run_id, AsyncioWaits(), timeout, log_states=log_states)


# --------------------------------------------------------------------------------------------- run again


def check_flow_fits(run: Run, flow: Flow[Any, Any]) -> None:
    """MissingFlowError unless `flow` is the one that the run was made from, judged by its name."""
    if flow.name != run.flow_run.flow_name:
        raise MissingFlowError(
            f"flow run {run.run_id} is a run of flow {run.flow_run.flow_name!r}, but the code names {flow.name!r}"
        )


def take_over(
    flow: Flow[Any, Any],
    flow_run_id: UUID | str,
    *,
    steal: bool = False,
    force: bool = False,
    patience: float | None = None,
) -> tuple[LiveRun, dict[str, Any], SyncClient]:
    """Claim a run for this process, with what is needed to run it again. Its parameters are rebuilt before the
    claim: a run that cannot be run here is not taken from anybody. An owner that is about to let go is waited for, at
    most `patience` seconds."""
    client = current_client()
    run = client.fold(str(flow_run_id))
    check_flow_fits(run, flow)
    try:
        parameters = flow.rebind(run.parameters())
    except MicroflowException as problem:
        raise MicroflowException(f"flow run {flow_run_id} cannot be run again here: {problem}") from problem
    return client.claim(str(flow_run_id), steal=steal, force=force, patience=patience), parameters, client


def rerun(flow: Flow[Any, Any], flow_run_id: UUID | str, *, steal: bool = False, force: bool = False) -> Any:
    """Run a run again from the top, in this process: what ended before is handed back, the rest is executed.

    Gives the final state, or a coroutine for it. RunningElsewhere while another process owns the run, unless
    `steal`; NotPausedError for a run that has ended, unless `force`."""
    live, parameters, _ = take_over(flow, flow_run_id, steal=steal, force=force)
    return run_to_state(flow, parameters, live)


# the reference's other name of the coroutine forms
for _dual, _coroutine in (
    (pause_flow_run, apause_flow_run),
    (suspend_flow_run, asuspend_flow_run),
    (resume_flow_run, aresume_flow_run),
):
    vars(_dual)["aio"] = _coroutine

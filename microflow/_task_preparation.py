# SPDX-License-Identifier: Apache-2.0
"""What happens between the creation of a task run and its RUNNING.

The parameters are resolved (futures and states become their results), the run gets its own name, and
``wait_for`` is waited for. An upstream that did not complete leaves the run NotReady; any other error here is
the caller's (an argument or a name that is no good): it is raised, and the run stays PENDING.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._arguments import contains_special, find
from .exceptions import InterruptedRun, MicroflowException, UpstreamTaskError
from .futures import RunFuture, resolve_argument
from .states import Pending, StateType, describe, exception_to_failed_state

if TYPE_CHECKING:
    from ._task_lifecycle import BaseTaskRunEngine


async def prepare(engine: BaseTaskRunEngine[Any]) -> bool:
    """Make the run ready to be run; False when that cannot be."""
    task_run, call = engine.task_run, engine._call
    assert task_run is not None and call is not None
    if call.again and engine.task.at_most_once and _is_interrupted(engine):
        return False
    parameters = engine.parameters
    try:
        if call.waits:
            record_pending(engine)
        if contains_special(parameters.values()):  # plain numbers and texts hold no futures
            for name, value in parameters.items():
                parameters[name] = await _resolve(engine, name, value)
        own_name = engine.task.render_run_name(parameters)
        if own_name is not None:
            engine.rename(own_name)
        if engine.wait_for is not None:
            await _wait_for_dependencies(engine)
    except UpstreamTaskError as error:
        engine.set_state(Pending(name="NotReady", message=str(error)), force=True)
        return False
    except Exception:  # an argument or a name that is no good: the caller's error; the run stays Pending
        record_pending(engine)
        raise
    return True


def record_pending(engine: BaseTaskRunEngine[Any]) -> None:
    """Record the creation of a run that has to wait: others may look for it meanwhile."""
    since, engine._pending_since = engine._pending_since, None
    if since is not None:
        pending = Pending()
        pending.at = since
        engine.set_state(pending)


async def _resolve(engine: BaseTaskRunEngine[Any], name: str, value: Any) -> Any:
    try:
        return await resolve_argument(value, engine.waits)
    except MicroflowException as error:
        if type(error) is not MicroflowException:  # an upstream that failed, a result that is missing, …
            raise
        raise MicroflowException(f"parameter {name!r} of task {engine.task.name!r}: {error}") from error
    except Exception as error:  # whatever a user's container does when it is rebuilt
        raise MicroflowException(
            f"Failed to resolve inputs in parameter {name!r} of task {engine.task.name!r}: {describe(error)}. "
            f"Wrap the argument in quote() or opaque() if futures need not be looked for inside of it."
        ) from error


async def _wait_for_dependencies(engine: BaseTaskRunEngine[Any]) -> None:
    task_run = engine.task_run
    assert task_run is not None
    for future in find(engine.wait_for, (RunFuture,)):
        if future.task_run_id == task_run.id:
            raise ValueError(
                f"Discovered a task depending on itself: {task_run.name!r} is in its own wait_for, "
                f"which would be a deadlock"
            )
    await resolve_argument(engine.wait_for, engine.waits)


def _is_interrupted(engine: BaseTaskRunEngine[Any]) -> bool:
    """Whether an earlier execution began this call and left it unended; it then fails as interrupted.

    A call that was between two attempts is not: its last one is known to have failed. Nor is one whose FAILED an
    operator has dropped."""
    state = engine.state
    if state.type is StateType.RUNNING or state.is_crashed():
        what = "was started and its end was not logged"
    elif state.is_completed():
        what = "completed, but its result was not kept"
    else:
        return False
    error = InterruptedRun(
        f"task run {engine.task_run.name if engine.task_run else ''!r} {what}. It is not run again, because task "
        f"{engine.task.name!r} is declared at_most_once; whether its effect took place has to be found out by hand"
    )
    engine.set_state(exception_to_failed_state(error, message="Task run was interrupted:"), force=True)
    engine._raised = error
    return True

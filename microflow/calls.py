# SPDX-License-Identifier: Apache-2.0
"""Which call this is: how a re-execution recognises what it did before (invariant I13).

A flow run that was suspended or killed runs again from the top. A task call in it is *the same call* when
these agree: the parent call (the flow run, or the task run that called it), the flow attempt, the task's
qualified name and ``version``, the fingerprint of its inputs, and that it is the n-th such call. An upstream
future counts by *its* call's identity, not by its result, so that a call can be recognised before its
upstreams are done.

From all that follows the *id of the task run*: the same call has the same id in every execution, and the
log is searched by id. The order in which threads submit does not matter, since only equal calls are
counted against each other, in the order of the code that makes them.

What does not work: positions (two threads submit in either order), a hash of the code (an edited comment would
run everything again), ids drawn at random (a killed run's calls would be lost).

Known holes: inputs that have no stable content (an open socket, a lambda) count by their type alone, so such
calls are told apart by their order only. An edited function is the same call, with one warning; change
``version`` to make it a new one.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ._arguments import contains_special, find
from ._boundary import check_boundary
from ._digests import blake2b
from .client.objects import FlowRun, FlowRunResult, TaskRun, TaskRunInput, TaskRunResult, new_run_id
from .client.orchestration import current_client
from .context import FlowRunContext, TaskRunContext, current_tags
from .exceptions import MicroflowException
from .futures import FlowRunFuture, RunFuture
from .hashing import fingerprint
from .states import State, StateType, Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._links import Links
    from .client.live import LiveRun
    from .client.memory import MemoryTasks
    from .tasks import Task

#: how many upstream runs are recorded for a parameter
MOST_UPSTREAMS = 1000

_warned_sources: set[str] = set()


class Call:
    """One call of a task: its task run, where its states go, and what an earlier execution left of it.

    ``ended`` is the final state to hand back; ``again`` says that the log has the run, but not its end.
    ``on_early_end`` is called with a final state that is recorded while the function still runs (it is late, and
    nothing can stop it), in a thread of its own. ``waits`` says that it has to wait for other runs, ``leaves_sync``
    that its end need not be on the disk when its engine is done: whoever submitted it sees to that before he tells."""

    __slots__ = ("again", "ended", "flow_context", "leaves_sync", "on_early_end", "recorder", "task_run", "waits")

    def __init__(
        self,
        task_run: TaskRun,
        recorder: LiveRun | MemoryTasks,
        flow_context: FlowRunContext | None,
        ended: State[Any] | None = None,
        again: bool = False,
        waits: bool = False,
    ) -> None:
        self.task_run = task_run
        self.recorder = recorder
        self.flow_context = flow_context
        self.ended = ended
        self.again = again
        self.waits = waits
        self.on_early_end: Callable[[State[Any]], None] | None = None
        self.leaves_sync = False

    def joins_again(self, task: Task[Any, Any]) -> bool:
        """Whether a call that is handed back joins the transaction around it: one that completed with something to
        commit, and was not committed. A cached result was found, so that there is nothing to commit."""
        ended = self.ended
        if ended is None or not ended.is_completed() or ended.name == "Cached":
            return False
        if not (task.on_commit_hooks or task.on_rollback_hooks or ended.state_details.cache_key):
            return False
        history = self.flow_context.live.recorded_call(self.task_run.id) if self.flow_context is not None else None
        return history is not None and not history.committed


def new_call(
    task: Task[Any, Any],
    parameters: dict[str, Any],
    wait_for: Any = None,
    dependencies: dict[str, set[TaskRunInput]] | None = None,
    task_run_id: UUID | None = None,
    *,
    afresh: bool = False,
) -> Call:
    """The call that the current run makes now, in the thread and at the moment where the user makes it.

    With `afresh` its end in an earlier execution is not handed back (the items of a generator are not in the log).
    TimeIsUp when the time of the task that calls has run out: it could not be interrupted until now."""
    flow_context, run_id, inputs, waits = _place(task, parameters, wait_for, dependencies, task_run_id)
    if flow_context is None:
        task_run = _new_task_run(task, run_id, None, inputs)
        return Call(task_run, current_client().tasks, None, waits=waits)
    flow_run, live = flow_context.flow_run, flow_context.live
    if afresh:
        ended, again = None, live.recorded_call(run_id) is not None
    else:
        ended, again = earlier_end(live, run_id, task.name, task.source_digest)
    if ended is not None or again:
        task_run = live.run.task_run(str(run_id), id=run_id, ended=ended)
        if ended is not None and (task._asset_deps or task.assets or flow_context.task_run_assets):
            from ._assets import AssetContext  # only runs that have to do with assets

            # what flows into the runs after it is as it was; nothing is noted again
            AssetContext.from_task_and_inputs(task, run_id, inputs)
        return Call(task_run, live, flow_context, ended, again, waits)
    task_run = _new_task_run(task, run_id, flow_run, inputs)
    return Call(task_run, live, flow_context, waits=waits)


def deferred_call(
    task: Task[Any, Any],
    parameters: dict[str, Any],
    wait_for: Any = None,
    dependencies: dict[str, set[TaskRunInput]] | None = None,
    task_run_id: UUID | None = None,
) -> TaskRun:
    """The task run that the current run defers now. In a flow its id follows from the call, as any call's does: a flow
    that is run again does not defer it a second time."""
    flow_context, run_id, inputs, _ = _place(task, parameters, wait_for, dependencies, task_run_id, b"deferred ")
    if flow_context is None:
        return _new_task_run(task, run_id, None, inputs)
    return _new_task_run(task, run_id, flow_context.flow_run, inputs)


def _place(
    task: Task[Any, Any],
    parameters: dict[str, Any],
    wait_for: Any,
    dependencies: dict[str, set[TaskRunInput]] | None,
    run_id: UUID | None,
    kind: bytes = b"",
) -> tuple[FlowRunContext | None, UUID, dict[str, list[TaskRunInput]], bool]:
    """Where a call is made: the flow run, the call's id there (`run_id` if given), what it depends on, and whether it
    has to wait for that."""
    flow_context, task_context = FlowRunContext.get(), TaskRunContext.get()
    if task_context is not None and task_context.limit is not None:
        task_context.limit.check()
    inputs = _inputs(parameters, wait_for, dependencies)
    waits = any(inputs.values())
    if flow_context is None:
        if task_context is not None:
            inputs["__parents__"] = [TaskRunResult(id=task_context.task_run.id)]
        return None, run_id or new_run_id(), inputs, waits
    flow_run = flow_context.flow_run
    if flow_context.parent is not None or flow_run.state_type is not StateType.RUNNING:
        check_boundary(flow_context)
    parent = flow_run.id
    if task_context is not None and task_context.task_run.flow_run_id == parent:
        parent = task_context.task_run.id
        inputs["__parents__"] = [TaskRunResult(id=parent)]
    elif flow_context.limit is not None:
        flow_context.limit.check()
    if flow_context.links.may_know(parameters.values()):
        _add_sources(inputs, parameters, flow_context.links)
    return flow_context, run_id or _call_id(task, parameters, flow_context.live, parent, kind), inputs, waits


def _add_sources(inputs: dict[str, list[TaskRunInput]], parameters: dict[str, Any], links: Links) -> None:
    """Add the runs that plain values came from, and those that are between two values that they yield as parents."""
    for name, value in parameters.items():
        sources = links.sources_in(value)
        if sources:
            inputs[name] = list(dict.fromkeys([*inputs[name], *sources]))[:MOST_UPSTREAMS]
    if links.has_live:
        parents = [each for each in map(links.live_parent, parameters.values()) if each is not None]
        if parents:
            inputs["__parents__"] = list(dict.fromkeys([*inputs.get("__parents__", ()), *parents]))


def _new_task_run(
    task: Task[Any, Any], run_id: UUID, flow_run: FlowRun | None, inputs: dict[str, list[TaskRunInput]]
) -> TaskRun:
    tags = current_tags()
    task_run = TaskRun(
        run_id,
        task.name,
        task_key=task.task_key,
        task_version=task.version,
        flow_run_id=None if flow_run is None else flow_run.id,
        tags=tags | task.tags if task.tags else tags,
        task_inputs=inputs,
        empirical_policy=task.policy,
    )
    if flow_run is not None:
        task_run.name = f"{task.name}-{task_run.text[:3]}"
        task_run.flow_run_run_count = flow_run.run_count
    return task_run


def _inputs(
    parameters: dict[str, Any],
    wait_for: Any,
    dependencies: dict[str, set[TaskRunInput]] | None,
) -> dict[str, list[TaskRunInput]]:
    """The upstream runs of each parameter, each once."""
    if contains_special(parameters.values()):
        inputs = {name: upstreams(value) for name, value in parameters.items()}
    else:  # as the parameters of most calls
        inputs = {name: [] for name in parameters}
    if wait_for:
        inputs["wait_for"] = upstreams(wait_for)
    for name, more in (dependencies or {}).items():
        known = inputs.setdefault(name, [])
        known.extend(item for item in sorted(more, key=repr) if item not in known)
    return inputs


def upstreams(value: Any) -> list[TaskRunInput]:
    """The runs that a value comes from: futures and states of runs, anywhere inside of it, each once; at most
    :data:`MOST_UPSTREAMS`, because a call is recorded in one line."""
    upstreams: dict[TaskRunInput, None] = {}
    for found in find(value, (RunFuture, State))[:MOST_UPSTREAMS]:
        if isinstance(found, FlowRunFuture):
            upstreams[FlowRunResult(id=found.flow_run_id)] = None
        elif isinstance(found, RunFuture):
            upstreams[TaskRunResult(id=found.task_run_id)] = None
        elif found.state_details.task_run_id is not None:
            upstreams[TaskRunResult(id=found.state_details.task_run_id)] = None
        elif found.state_details.flow_run_id is not None:
            upstreams[FlowRunResult(id=found.state_details.flow_run_id)] = None
    return list(upstreams)


def _call_id(
    task: Task[Any, Any], parameters: dict[str, Any], live: LiveRun, parent: UUID, kind: bytes = b""
) -> UUID:
    attempt = live.flow_run.attempt.to_bytes(4, "big")
    content = kind + parent.bytes + attempt + task.call_identity + fingerprint(parameters, stand_in)
    return identity(content, live)


def identity(content: bytes, live: LiveRun) -> UUID:
    """The run id of the call that `content` describes, counted among its equals (RFC 9562, version 8)."""
    call = blake2b(content, digest_size=16).digest()
    number = live.occurrence(call)
    if number:
        call = blake2b(call + number.to_bytes(4, "big"), digest_size=16).digest()
    bits = int.from_bytes(call, "big")
    return UUID(int=bits & ~(0xF << 76) & ~(0x3 << 62) | 8 << 76 | 2 << 62)


def stand_in(value: Any) -> Any:
    """How an upstream counts among the inputs of a call: by *its* call, not by its result."""
    if isinstance(value, RunFuture):
        return {"run": str(value.task_run_id)}
    if isinstance(value, State):
        run_id = value.state_details.task_run_id or value.state_details.flow_run_id
        return {"state": value.type.value, "run": str(run_id) if run_id else None, "message": value.message}
    return None


def earlier_end(
    live: LiveRun, run_id: UUID, name: str, source: str | None = None
) -> tuple[State[Any] | None, bool]:
    """The end of a call in an earlier execution, and whether there is a trace of it without a usable end.

    An end can be used when its value or exception was kept and can be rebuilt here."""
    history = live.recorded_call(run_id)
    if history is None:
        return None, False
    last = history.last
    if last is None or last["type"] not in ("COMPLETED", "FAILED") or history.created["run"] in live.run.dropped:
        return None, True
    if history.rolled_back:  # what it did outside was undone: its value alone is half of it
        return None, True
    state = live.run.task_state(last, run_id, history.name)
    if state.data is None and not state.state_details.returned_state:
        return None, True
    try:
        if state.data is not None:
            data = state.data.load()
            state.data = data if isinstance(data, BaseException) and state.is_failed() else Value(data)
    except MicroflowException as problem:
        warnings.warn(f"{name!r} completed, but is run again: {problem}", RuntimeWarning, stacklevel=2)
        return None, True
    if source is not None and _was_edited(history.created.get("source"), source) and name not in _warned_sources:
        _warned_sources.add(name)
        warnings.warn(
            f"the code of task {name!r} changed since the run was started; its ended calls are handed back all "
            f"the same. Change its version to run them again.",
            RuntimeWarning,
            stacklevel=2,
        )
    live.take_back(run_id)
    return state, False


def _was_edited(recorded: str | None, present: str) -> bool:
    """Whether the code differs from the recorded one; unknown between two versions of Python."""
    if recorded is None or recorded.partition("-")[0] != present.partition("-")[0]:
        return False
    return recorded != present

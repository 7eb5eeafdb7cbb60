# SPDX-License-Identifier: Apache-2.0
"""Definitions and runs as plain data, so that another process can go on with them.

What crosses is never an object of ours: a task or flow goes as the name by which it is found again, a flow run as
the facts that a call made inside of it depends on. The process that owns a flow run is the only one that appends to
its log; elsewhere the run is *detached*: the same :class:`LiveRun` over a store in memory. The calls that are made
there get the same ids, are recorded by the same code, and :func:`news` is what the owner then appends.

Known holes: a subflow that is called there has its log in the home that its process has; its tracking run is
among the news, so a worker that dies in between leaves a child that its parent does not know.
"""

from __future__ import annotations

import sys
import weakref
from types import MethodType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ._modules import class_name
from ._tagged_json import import_resolver
from .client.fold import note_record
from .client.objects import FlowRun, TaskRun
from .client.orchestration import SyncClient
from .entrypoints import entrypoint_of, load_entrypoint, why_not_importable
from .exceptions import ConfigurationError, MissingResult, SerializationError, StorageError
from .states import Running, State
from .stores import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._definitions import Definition
    from .client.fold import Run, TaskHistory
    from .client.live import LiveRun

Bodies = list[dict[str, Any]]

#: what a detached run may report; the states of the flow run itself are its owner's matter
REPORTED = frozenset({"task", "state", "rename", "note"})
#: half of what a line of the log holds
MOST_BYTES = 512 * 1024


# ------------------------------------------------------------------------------------------------ definitions


def why_not_findable(fn: Any) -> str | None:
    """Why another process would not find this very function by its name, as a clause with "it"; None if it would."""
    reason = why_not_importable(fn)
    if reason is not None:
        return reason
    found: Any = sys.modules[fn.__module__]
    for name in fn.__qualname__.split("."):
        found = getattr(found, name, None)
        if found is None:
            return f"there is no {fn.__qualname__} in its module {fn.__module__}"
    same = (found, getattr(found, "fn", None), getattr(found, "__func__", None), getattr(found, "__wrapped__", None))
    if not (any(each is fn for each in same) or (isinstance(fn, MethodType) and found == fn)):
        return f"{fn.__module__}.{fn.__qualname__} names something else by now"
    return None


def describe_definition(definition: Definition) -> dict[str, Any]:
    """A task or flow as data: how it is found, and what it is called. ``entrypoint`` is None if it cannot be found."""
    findable = why_not_findable(definition.fn) is None
    return {
        "kind": class_name(type(definition)),
        "entrypoint": entrypoint_of(definition.fn) if findable else None,
        "name": definition.name,
        "version": definition.version,
    }


def load_definition(described: dict[str, Any], fn: Any = None) -> Any:
    """The definition that :func:`describe_definition` described: the one that stands under its name, else one of
    the same kind and name around the function there, or around `fn`. Imports the function's module.

    MissingFlowError and ScriptError as of ``load_entrypoint``."""
    kind = import_resolver(*described["kind"].split(":"))
    if fn is None:
        found = load_entrypoint(described["entrypoint"])
        if isinstance(found, kind) and found.name == described["name"]:
            return found
        fn = getattr(found, "fn", None) or getattr(found, "__func__", found)
    return kind(fn, name=described["name"], version=described["version"])


def stand_in(described: dict[str, Any]) -> Any:
    """A definition that tells name and version and cannot be called: for the flow around a task whose module is
    not to be imported just for that."""

    def elsewhere(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{described['name']!r} stands in another process and is known here by name only")

    kind = import_resolver(*described["kind"].split(":"))
    return kind(elsewhere, name=described["name"], version=described["version"])


# ------------------------------------------------------------------------------------------------ runs as data


def describe_flow_run(run: FlowRun) -> dict[str, Any]:
    """The facts of a flow run that a call inside of it depends on."""
    return {
        "id": str(run.id),
        "name": run.name,
        "flow_name": run.flow_name,
        "flow_version": run.flow_version,
        "parameters": run.parameters,
        "tags": sorted(run.tags),
        "entrypoint": run.entrypoint,
        "parent_task_run_id": run.parent_task_run_id and str(run.parent_task_run_id),
        "parent_flow_run_id": run.parent_flow_run_id and str(run.parent_flow_run_id),
        "root_flow_run_id": str(run.root_flow_run_id),
        "idempotency_key": run.idempotency_key,
        "deployment_id": run.deployment_id and str(run.deployment_id),
        "attempt": run.attempt,
        "run_count": run.run_count,
    }


def describe_task_run(run: TaskRun) -> dict[str, Any]:
    """The facts of a task run that its function can ask for."""
    state = run.state
    return {
        "id": run.text,
        "name": run.name,
        "task_key": run.task_key,
        "task_version": run.task_version,
        "flow_run_id": run.flow_run_id and str(run.flow_run_id),
        "tags": sorted(run.tags),
        "empirical_policy": run.empirical_policy,
        "run_count": run.run_count,
        "flow_run_run_count": run.flow_run_run_count,
        "state": None if state is None else [state.type.value, state.name, state.message, state.at],
    }


def _uuids(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        name: UUID(value) if value and (name == "id" or name.endswith("_id")) else value
        for name, value in facts.items()
    }


def task_run_from(facts: dict[str, Any]) -> TaskRun:
    """The task run that :func:`describe_task_run` described."""
    given = _uuids(facts)
    state, counts = given.pop("state"), (given.pop("run_count"), given.pop("flow_run_run_count"))
    run = TaskRun(**{**given, "tags": set(given["tags"])})
    run.recorded = True
    if state is not None:
        present: State[Any] = State(state[0], name=state[1], message=state[2])
        present.at = state[3]
        present.state_details.task_run_id, present.state_details.flow_run_id = run.id, run.flow_run_id
        run.enter(present)
    run.run_count, run.flow_run_run_count = counts
    return run


def detached_run(facts: dict[str, Any], flow: Any, *, keep_results: bool = True) -> LiveRun:
    """A run that answers to calls as its owner's would, and is recorded in this process's memory only."""
    given = _uuids(facts)
    attempt, run_count, parameters = given.pop("attempt"), given.pop("run_count"), given.pop("parameters")
    run = FlowRun(**{**given, "tags": set(given["tags"])})
    live = SyncClient(MemoryStore(), keep_results=keep_results).start(run, flow, {}, Running(), own=True)
    here = live.flow_run
    here.attempt, here.run_count, here.parameters = attempt, run_count, parameters
    live.propose = live.decide = _refuse  # type: ignore[method-assign]  # the flow run's states are its owner's
    return live


def _refuse(*proposed: Any, **options: Any) -> Any:
    raise ConfigurationError(
        "a task that runs in another process cannot pause, suspend or end its flow run; have the flow do it, or give "
        "the id of the flow run"
    )


# ------------------------------------------------------------------------------- what is known of a task's own calls


def parts(bodies: Iterable[dict[str, Any]]) -> Iterator[Bodies]:
    """Records cut into pieces that each fit into a line of the log."""
    import json  # loaded already

    part: Bodies = []
    size = 0
    for body in bodies:
        length = len(json.dumps(body))
        if part and size + length > MOST_BYTES:
            yield part
            part, size = [], 0
        part.append(body)
        size += length
    if part:
        yield part


def files_of(bodies: Bodies, run_id: str, store: Any) -> dict[str, bytes]:
    """The result files that records name, by name. One that is gone is left out: the call then runs again."""
    files = {}
    for body in bodies:
        entry = body.get("result") or {}
        if "file" in entry:
            try:
                files[entry["file"]] = store.get_result(run_id, entry["file"], entry["size"])
            except (MissingResult, StorageError):
                continue
    return files


#: for each folded run: how many task runs it had when it was looked through, and the calls of each of them
_calls: weakref.WeakKeyDictionary[Run, tuple[int, dict[str, list[str]]]] = weakref.WeakKeyDictionary()


def _calls_of(run: Run) -> dict[str, list[str]]:
    """The task runs that each task run called. Looked for once: thousands of attempts may ask."""
    known = _calls.get(run)
    if known is None or known[0] != len(run.tasks):
        calls: dict[str, list[str]] = {}
        for run_id, history in run.tasks.items():
            for _, parent in history.created.get("inputs", {}).get("__parents__", ()):
                calls.setdefault(parent, []).append(run_id)
        known = _calls[run] = (len(run.tasks), calls)
    return known[1]


def history_of(run: Run, parent: UUID) -> tuple[Bodies, list[str]]:
    """The records that an earlier execution left of the calls that a task run made, and of theirs; and which of
    them an operator's claim dropped. Empty in a first execution, at no cost."""
    if not run.tasks:
        return [], []
    calls, left = _calls_of(run), [str(parent)]
    bodies: Bodies = []
    dropped: list[str] = []
    while left:
        for run_id in calls.get(left.pop(), ()):
            left.append(run_id)
            bodies.extend(_records_of(run_id, run.tasks[run_id]))
            if run_id in run.dropped:
                dropped.append(run_id)
    return bodies, dropped


def _records_of(run_id: str, history: TaskHistory) -> Iterator[dict[str, Any]]:
    yield history.created
    if history.names:
        yield {"k": "rename", "run": run_id, "name": history.names[-1]}
    yield from history.states
    if history.committed and history.states:  # so that whoever hands it back does not commit it once more
        yield note_record(run_id, "committed", history.states[-1]["at"], {})


def teach(live: LiveRun, bodies: Bodies, files: Iterable[bytes], dropped: Iterable[str]) -> None:
    """Let a detached run know what an earlier execution left."""
    for data in files:
        live.store.put_result(live.run_id, data)
    for part in parts(bodies):
        live.store.append(live.run_id, part, expect=live.run.position, epoch=live.epoch)
        live.refresh()
    live.run.dropped.update(dropped)


def news(live: LiveRun, position: int) -> tuple[Bodies, dict[str, bytes]]:
    """What a detached run recorded since `position`: records, and the result files that they name."""
    records = live.store.read(live.run_id, position).records
    bodies = [record.data for record in records if record.kind in REPORTED and "run" in record.data]
    return bodies, files_of(bodies, live.run_id, live.store)


def checked_news(bodies: Any) -> Bodies:
    """Records that came from another process; SerializationError for what is none that it may report."""
    for body in bodies:
        try:
            if body["k"] not in REPORTED or str(UUID(body["run"])) != body["run"]:
                raise ValueError(body["k"])
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise SerializationError(f"a worker reported what is no record of a task run: {problem!r}") from problem
    return list(bodies)

# SPDX-License-Identifier: Apache-2.0
"""What happens to assets: things outside that tasks read and make, and events that say which came from which.

An :class:`Asset` is a name, a URI such as ``s3://bucket/table``. A task that *materializes* assets (``Task.assets``)
makes them from those that flowed into it: what it names in ``asset_deps``, and what its upstream task runs made or, if
they made nothing, read themselves. So assets flow through plain tasks, which emit nothing by themselves.

An attempt of a task run that has to do with assets runs in an :class:`AssetContext`. When it ends for good, COMPLETED
or FAILED, the events are appended as notes beside its last state, and ``client.read_asset_events`` lists them:

* ``asset.referenced``, one for each asset that flowed in,
* ``asset.materialization.succeeded`` or ``….failed``, one for each asset of the task, with the assets that flowed in
  and the metadata that the task added.

A Cached run emits nothing: nothing was made. An inner task is unrelated to the one that called it.

Known holes: an event is lost if the process dies between the last state and the note. What flows is known within one
flow run, so a subflow's assets do not reach the tasks after it. A task that runs in another process cannot add
metadata.
"""

from __future__ import annotations

import json
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from . import _strict_json
from ._plain_json import plain
from ._waits import scope
from .client.objects import TaskRunResult
from .context import ContextModel, FlowRunContext
from .states import StateType

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
    from uuid import UUID

    from ._task_lifecycle import BaseTaskRunEngine
    from .client.live import LiveRun
    from .client.memory import MemoryTasks
    from .client.objects import TaskRun, TaskRunInput
    from .states import State
    from .tasks import Task

__all__ = ["Asset", "AssetContext", "AssetProperties", "add_asset_metadata"]

LONGEST_KEY = 512
LONGEST_DESCRIPTION = 2500

#: how many assets that flowed in one event names
MOST_RELATED = 1000
#: how long the JSON of one run's metadata for one asset may be; a line of the log holds 1 MiB
LONGEST_METADATA = 64 * 1024
#: how deep it may be nested; a line of the log may be 100 deep
DEEPEST_METADATA = 90
#: events are put into one line up to this length
LINE = 256 * 1024

_SCHEME = re.compile(r"[a-z0-9]+://")
_FORBIDDEN = re.compile(r"""[\s\x00-\x1f\x7f#?&%"'<>\[\]{}|\\^`]""")


class _Frozen:
    """Compares by its fields, which cannot be changed."""

    __slots__: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: its {name!r} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: its {name!r} cannot be deleted")

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), self._fields()[0]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._fields()

    def __repr__(self) -> str:
        given = zip(self.__slots__, self._fields(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given if value is not None)})"


class AssetProperties(_Frozen):
    """What people want to know of an asset. ValueError for a description above 2500 characters."""

    __slots__ = ("name", "url", "description", "owners")  # noqa: RUF023 - the order of the arguments
    name: str | None
    url: str | None
    description: str | None
    owners: list[str] | None

    def __init__(
        self,
        name: str | None = None,
        url: str | None = None,
        description: str | None = None,
        owners: list[str] | None = None,
    ) -> None:
        if description is not None and len(description) > LONGEST_DESCRIPTION:
            raise ValueError(
                f"the description of an asset may have {LONGEST_DESCRIPTION} characters, "
                f"this one has {len(description)}"
            )
        for slot, value in zip(self.__slots__, (name, url, description, owners), strict=True):
            object.__setattr__(self, slot, value)

    def given(self) -> dict[str, Any]:
        """The properties that are not None."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


class Asset(_Frozen):
    """Something outside that tasks read or make, by its `key`: a URI of at most 512 characters.

    ValueError for another key: it begins with a scheme of lower-case letters and digits and ``://``, and has no
    spaces, control characters or any of ``#?&%"'<>[]{}|\\^`` and the backquote. Hashed by its key."""

    __slots__ = ("key", "properties")
    key: str
    properties: AssetProperties | None

    def __init__(self, key: str, properties: AssetProperties | None = None) -> None:
        given: Any = key
        if not (isinstance(given, str) and _SCHEME.match(given)):
            raise ValueError(f"the key of an asset is a URI such as 's3://bucket/table', not {key!r}")
        if len(key) > LONGEST_KEY:
            raise ValueError(f"the key of an asset may have {LONGEST_KEY} characters, this one has {len(key)}: {key!r}")
        wrong = _FORBIDDEN.search(key)
        if wrong is not None:
            raise ValueError(f"the key of an asset may not contain {wrong.group()!r}: {key!r}")
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "properties", properties)

    def __repr__(self) -> str:
        return f"Asset({self.key!r})" if self.properties is None else super().__repr__()

    def add_metadata(self, metadata: Mapping[str, Any]) -> None:
        """See :func:`add_asset_metadata`."""
        add_asset_metadata(self, metadata)


class AssetContext(ContextModel):
    """Which assets have to do with the task run whose function runs, and the metadata that was added to them."""

    __slots__ = ("direct_asset_dependencies", "downstream_assets", "materialized_by", "metadata", "upstream_assets")
    _current = ContextVar("microflow_assets", default=None)

    def __init__(
        self,
        direct_asset_dependencies: Iterable[Asset] = (),
        downstream_assets: Iterable[Asset] = (),
        upstream_assets: Iterable[Asset] = (),
        materialized_by: str | None = None,
    ) -> None:
        super().__init__()
        #: what the task names in ``asset_deps``; what it makes; what its upstreams made or read. Each key once
        self.direct_asset_dependencies = _once(direct_asset_dependencies)
        self.downstream_assets = _once(downstream_assets)
        self.upstream_assets = _once(upstream_assets)
        #: the tool that makes the assets, if it is not the task itself
        self.materialized_by = materialized_by
        #: key -> what was added with ``add_asset_metadata``
        self.metadata: dict[str, dict[str, Any]] = {}

    @classmethod
    def from_task_and_inputs(
        cls,
        task: Task[Any, Any],
        task_run_id: UUID,
        task_inputs: Mapping[str, Iterable[TaskRunInput]] | None = None,
    ) -> AssetContext:
        """The context of a run of `task`; what flows on from it is known to the flow run from now on."""
        flow_context = FlowRunContext.get()
        known = {} if flow_context is None else flow_context.task_run_assets
        upstream: list[Asset] = []
        for name, inputs in (task_inputs or {}).items():
            if name != "__parents__" and known:
                for each in inputs:
                    if isinstance(each, TaskRunResult) and each.id is not None:
                        upstream += known.get(each.id, ())
        context = cls(task.asset_deps, task.assets, upstream, task.materialized_by)
        flowing_on = context.downstream_assets or context.flowed_in()
        if flowing_on and flow_context is not None:
            known[task_run_id] = tuple(flowing_on)
        return context

    def flowed_in(self) -> list[Asset]:
        """The assets that those of the task are made from, each key once."""
        return _once((*self.upstream_assets, *self.direct_asset_dependencies))

    def add_asset_metadata(self, asset_key: str, metadata: Mapping[str, Any]) -> None:
        """Add to the metadata of an asset that the task makes; later values replace earlier ones of the same name.

        ValueError for an asset that the task does not make."""
        if asset_key not in {asset.key for asset in self.downstream_assets}:
            makes = ", ".join(repr(asset.key) for asset in self.downstream_assets) or "none"
            raise ValueError(
                f"Can only add metadata to assets that are arguments to @materialize; {asset_key!r} is none of them "
                f"(the task makes {makes})"
            )
        self.metadata[asset_key] = {**self.metadata.get(asset_key, {}), **metadata}

    def plain_metadata(self) -> dict[str, dict[str, Any]]:
        """What was added to each asset, as JSON that is short enough to be noted."""
        return {key: _plain_metadata(metadata) for key, metadata in self.metadata.items()}

    # ------------------------------------------------------------------------------------------ events

    def events(self, state: State[Any]) -> list[dict[str, Any]]:
        """What is to be noted when the run has come to `state`: nothing unless the task makes assets and has ended."""
        outcome = {StateType.COMPLETED: "succeeded", StateType.FAILED: "failed"}.get(state.type)
        if outcome is None or state.name == "Cached" or not self.downstream_assets:
            return []
        flowed_in = self.flowed_in()[:MOST_RELATED]
        events = [_event("asset.referenced", asset) for asset in flowed_in]
        for asset in self.downstream_assets:
            event = _event(f"asset.materialization.{outcome}", asset)
            if flowed_in:
                event["related"] = [each.key for each in flowed_in]
            if self.materialized_by is not None:
                event["by"] = self.materialized_by
            if asset.key in self.metadata:
                event["metadata"] = _plain_metadata(self.metadata[asset.key])
            events.append(event)
        return events

    def record(self, state: State[Any], task_run: TaskRun, recorder: LiveRun | MemoryTasks) -> None:
        """Append the events, as many to a line as fit. What the append precedes is said in ``LiveRun.note``."""
        for line in _lines(self.events(state)):
            recorder.note(task_run, "asset", *line)


@scope
async def attempt_context(engine: BaseTaskRunEngine[Any]) -> AsyncGenerator[AssetContext, None]:
    """The context of an attempt of a task run. What happened to its assets is noted once the run has ended."""
    call, task_run = engine._call, engine.task_run
    assert call is not None and task_run is not None
    context = AssetContext.from_task_and_inputs(engine.task, task_run.id, task_run.task_inputs)
    try:
        with context:
            yield context
    finally:
        context.record(engine.state, task_run, call.recorder)


def add_asset_metadata(asset: str | Asset, metadata: Mapping[str, Any]) -> None:
    """Add metadata to an asset that the current task makes, to be read with its event.

    RuntimeError outside of a task that has to do with assets, ValueError for an asset that the task does not make.
    What is not JSON is noted in the form that people are shown; more than 64 KiB of it is named by its size."""
    context = AssetContext.get()
    if context is None:
        raise RuntimeError("Unable to add Asset metadata: this is not called from a task that makes assets")
    context.add_asset_metadata(asset if isinstance(asset, str) else asset.key, metadata)


def _once(assets: Iterable[Asset]) -> list[Asset]:
    """Each key once, in order; with its properties if any of the equal keys has some."""
    found: dict[str, Asset] = {}
    for asset in assets:
        known = found.get(asset.key)
        if known is None or (known.properties is None and asset.properties is not None):
            found[asset.key] = asset
    return list(found.values())


def _event(event: str, asset: Asset) -> dict[str, Any]:
    properties = asset.properties.given() if asset.properties is not None else {}
    return {"event": event, "asset": asset.key, **({"properties": properties} if properties else {})}


def _plain_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    form = {str(name): plain(value) for name, value in metadata.items()}
    try:
        length = len(_strict_json.encode(form, depth=DEEPEST_METADATA))
    except (TypeError, ValueError, RecursionError) as error:
        return {"not_kept": f"it cannot be written as JSON: {error}"}
    return form if length <= LONGEST_METADATA else {"not_kept": f"it has {length:,} characters of JSON"}


def _lines(events: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    line: list[dict[str, Any]] = []
    length = 0
    for event in events:
        own_length = len(json.dumps(event))
        if line and length + own_length > LINE:
            yield line
            line, length = [], 0
        line.append(event)
        length += own_length
    if line:
        yield line

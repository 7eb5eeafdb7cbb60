# SPDX-License-Identifier: Apache-2.0
"""What is current: the flow run, the task run, the tags.

Contexts are context variables: they follow into asyncio tasks by themselves and into the threads of a
runner because submitting copies them. A thread that a user starts has none, and a flow called there
is a root run.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, Token
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ._links import Links
from ._modules import class_name
from ._waits import RUN_IS_ASYNC, now_us, to_datetime
from .exceptions import MissingContextError
from .settings import current_settings, temporary_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from types import TracebackType
    from uuid import UUID

    from ._timeouts import Limit
    from .client.live import LiveRun
    from .client.objects import FlowRun, TaskRun
    from .client.orchestration import SyncClient
    from .flows import Flow
    from .results import ResultStore
    from .settings import Settings
    from .task_runners import TaskRunner
    from .tasks import Task

C = TypeVar("C", bound="ContextModel")

#: whether what is printed here is logged; None when no run around has said anything
PRINTS_ARE_LOGGED: ContextVar[bool | None] = ContextVar("microflow_prints_are_logged", default=None)


class ContextModel:
    """A thing that is current between ``with`` and its end. An object can be entered once at a time."""

    __slots__ = ("_tokens", "log_prints")
    _current: ClassVar[ContextVar[Any]]

    def __init__(self) -> None:
        #: whether what is printed in it is logged; None: as around it
        self.log_prints: bool | None = None
        self._tokens: tuple[Token[Any], Token[bool | None] | None, Token[bool | None] | None] | None = None

    @classmethod
    def get(cls: type[C]) -> C | None:
        """The current one, or None."""
        current: C | None = cls._current.get()
        return current

    def _colour(self) -> bool | None:
        return None

    def __enter__(self: C) -> C:
        if self._tokens is not None:
            raise RuntimeError("Context already entered. Enter a copy() of it instead.")
        colour, prints = self._colour(), self.log_prints
        self._tokens = (
            self._current.set(self),
            None if colour is None else RUN_IS_ASYNC.set(colour),
            None if prints is None else PRINTS_ARE_LOGGED.set(prints),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tokens is None:
            raise RuntimeError("Asymmetric use of context. It was not entered.")
        (current, colour, prints), self._tokens = self._tokens, None
        self._current.reset(current)
        if colour is not None:
            RUN_IS_ASYNC.reset(colour)
        if prints is not None:
            PRINTS_ARE_LOGGED.reset(prints)

    async def __aenter__(self: C) -> C:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def copy(self: C) -> C:
        """A copy that is not entered."""
        twin = copy.copy(self)
        twin._tokens = None
        return twin


class FlowRunContext(ContextModel):
    """The flow run whose body runs: one object for each attempt."""

    __slots__ = (
        "_pauses",
        "_start",
        "client",
        "flow",
        "flow_run",
        "limit",
        "links",
        "live",
        "parameters",
        "parent",
        "persist_result",
        "result_store",
        "task_run_assets",
        "task_runner",
        "tasks_persist",
    )
    _current = ContextVar("microflow_flow_run", default=None)

    def __init__(
        self,
        flow: Flow[Any, Any],
        flow_run: FlowRun,
        live: LiveRun,
        client: SyncClient,
        task_runner: TaskRunner[Any],
        parameters: dict[str, Any],
    ) -> None:
        super().__init__()
        self.flow = flow
        self.flow_run = flow_run
        self.live = live
        self.client = client
        self.task_runner = task_runner
        self.parameters = parameters
        #: the time limit of the attempt
        self.limit: Limit | None = None
        #: the flow run that called this one as a subflow
        self.parent = FlowRunContext.get()
        #: which plain values came from which run
        self.links = Links()
        #: the assets that flow on from each task run that has to do with some
        self.task_run_assets: dict[UUID, tuple[Any, ...]] = {}
        #: where results are persisted, None for the default, and whether; and what the setting for tasks says of that.
        #: The settings are read once for each attempt of the flow run
        self.result_store: ResultStore | None = None
        self.persist_result = False
        self.tasks_persist: bool | None = None
        self._pauses = count(1)
        self._start = now_us()

    @property
    def start_time(self) -> datetime | None:
        """When the attempt began."""
        return to_datetime(self._start)

    def count_pause(self) -> str:
        """The key of the next pause that is given none: 1, 2, … in the order of the attempt's calls."""
        return str(next(self._pauses))

    def callers(self) -> Iterator[FlowRunContext]:
        """The flow run that called this one, the one that called that, and so on."""
        context = self.parent
        while context is not None:
            yield context
            context = context.parent

    def _colour(self) -> bool | None:
        return self.flow.isasync


EngineContext = FlowRunContext  # the reference's other name


class TaskRunContext(ContextModel):
    """The task run whose function runs: one object for each attempt."""

    __slots__ = ("_start", "client", "limit", "parameters", "persist_result", "result_store", "task", "task_run")
    _current = ContextVar("microflow_task_run", default=None)

    def __init__(
        self,
        task: Task[Any, Any],
        task_run: TaskRun,
        parameters: dict[str, Any],
        client: SyncClient | None,
        limit: Limit | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.task_run = task_run
        self.parameters = parameters
        self.client = client
        #: the time limit of the attempt
        self.limit = limit
        #: where results are persisted, and whether; None for a run that has nothing to do with that
        self.result_store: ResultStore | None = None
        self.persist_result: bool | None = None
        self._start = now_us()

    @property
    def start_time(self) -> datetime | None:
        """When the attempt began."""
        return to_datetime(self._start)

    def _colour(self) -> bool | None:
        return self.task.isasync


class TagsContext(ContextModel):
    """The tags that runs created now are given."""

    __slots__ = ("current_tags",)
    _current = ContextVar("microflow_tags", default=None)

    def __init__(self, current_tags: set[str]) -> None:
        super().__init__()
        self.current_tags = current_tags


class SettingsContext(ContextModel):
    """The settings that hold here. ``get()`` gives those that hold now; those of one that is entered hold in it."""

    __slots__ = ("_temporary", "settings")

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__()
        self.settings = current_settings() if settings is None else settings
        self._temporary: list[temporary_settings] = []

    @classmethod
    def get(cls) -> SettingsContext:
        """The settings that hold now. Never None."""
        return cls()

    def __enter__(self) -> SettingsContext:
        temporary = temporary_settings(**self.settings.as_dict())
        temporary.__enter__()
        self._temporary.append(temporary)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._temporary:
            raise RuntimeError("Asymmetric use of context. It was not entered.")
        self._temporary.pop().__exit__(kind, error, trace)

    def copy(self) -> SettingsContext:
        """A copy that is not entered."""
        return SettingsContext(self.settings)


def current_tags() -> set[str]:
    """A copy of the tags in force."""
    context = TagsContext.get()
    return set() if context is None else set(context.current_tags)


@contextmanager
def tags(*new_tags: str) -> Iterator[set[str]]:
    """Add tags to all runs created in the block; yields the union with those already in force."""
    union = current_tags() | set(new_tags)
    with TagsContext(union):
        yield union


def describe_context() -> dict[str, Any]:
    """What a run that is deferred here is to know of the place where it was deferred, as plain JSON."""
    flow_context, task_context = FlowRunContext.get(), TaskRunContext.get()
    described = {
        "tags": sorted(current_tags()),
        "flow_run_id": None if flow_context is None else flow_context.flow_run.text,
        "task_run_id": None if task_context is None else task_context.task_run.text,
    }
    return {name: value for name, value in described.items() if value}


def get_run_context() -> FlowRunContext | TaskRunContext:
    """The context of the run whose code calls: the task's, unless a subflow was called inside of it.

    MissingContextError outside of runs."""
    flow_context, task_context = FlowRunContext.get(), TaskRunContext.get()
    if task_context is not None:
        if flow_context is None or flow_context.flow_run.id == task_context.task_run.flow_run_id:
            return task_context
        return flow_context
    if flow_context is None:
        raise MissingContextError("No run context is available: this is not called from a flow or a task.")
    return flow_context


# ------------------------------------------------------------------------------------- carried to other processes


def serialize_context() -> dict[str, Any]:
    """What is current here, as plain JSON that :func:`hydrated_context` makes current elsewhere.

    The flow run and the task run go as facts, not as objects: their parameters in the form that logs show.
    Whatever is not set is an empty dict or None. Settings go along in full, as they are."""
    from ._carried import describe_definition, describe_flow_run, describe_task_run  # only who sends needs it

    flow, task, given_tags = FlowRunContext.get(), TaskRunContext.get(), TagsContext.get()
    parts: dict[str, Any] = {
        "flow_run_context": {},
        "task_run_context": {},
        "tags_context": {} if given_tags is None else {"current_tags": sorted(given_tags.current_tags)},
        "settings_context": current_settings().as_dict(),
        "asset_context": {},
        "deployment_id": None,
        "deployment_parameters": {},
    }
    if flow is not None:
        parts["flow_run_context"] = {
            "flow": describe_definition(flow.flow),
            "flow_run": describe_flow_run(flow.flow_run),
            "task_runner": class_name(getattr(flow.task_runner, "nested_runner", None) or type(flow.task_runner)),
            "keep_results": flow.live.keep_results,
            "log_prints": flow.log_prints,
            "start_time": flow._start,
        }
    if task is not None:
        parts["task_run_context"] = {
            "task": describe_definition(task.task),
            "task_run": describe_task_run(task.task_run),
            "log_prints": task.log_prints,
            "start_time": task._start,
        }
    return parts


@contextmanager
def hydrated_context(
    serialized: dict[str, Any] | None = None, *, flow: Any = None, task: Any = None, parameters: Any = None
) -> Iterator[LiveRun | None]:
    """Make current what :func:`serialize_context` described, for the block; nothing at all for None or ``{}``.

    Yields the flow run as it is *detached*: task calls in the block are recorded in this process's memory, not
    in the log, which only the run's owner appends to. Submitted ones run here, and have ended when the block
    has. `flow`, `task` and `parameters` are used in place of what would have to be found."""
    with ExitStack() as stack:
        live = None
        given = serialized or {}
        if given.get("settings_context"):
            stack.enter_context(temporary_settings(**given["settings_context"]))
        if given.get("flow_run_context"):
            live = _hydrate_flow(given["flow_run_context"], flow, stack)
        if given.get("task_run_context"):
            _hydrate_task(given["task_run_context"], task, parameters, stack)
        if given.get("tags_context"):
            stack.enter_context(TagsContext(set(given["tags_context"]["current_tags"])))
        yield live


def _hydrate_flow(part: dict[str, Any], flow: Any, stack: ExitStack) -> LiveRun:
    from ._carried import detached_run, stand_in  # only who receives needs it
    from ._tagged_json import import_resolver  # likewise
    from .client.orchestration import current_client  # likewise

    flow = flow if flow is not None else stand_in(part["flow"])
    live = detached_run(part["flow_run"], flow, keep_results=part["keep_results"])
    runner = import_resolver(*part["task_runner"].split(":"))()
    context = FlowRunContext(flow, live.flow_run, live, current_client(), runner, live.flow_run.parameters)
    context._start, context.log_prints = part["start_time"], part["log_prints"]
    stack.enter_context(context)
    stack.enter_context(runner)
    return live


def _hydrate_task(part: dict[str, Any], task: Any, parameters: Any, stack: ExitStack) -> None:
    from ._carried import stand_in, task_run_from  # only who receives needs it

    flow_context = FlowRunContext.get()
    client = None if flow_context is None else flow_context.client
    task = task if task is not None else stand_in(part["task"])
    context = TaskRunContext(task, task_run_from(part["task_run"]), parameters or {}, client)
    context._start, context.log_prints = part["start_time"], part["log_prints"]
    stack.enter_context(context)


class _InContext:
    """A function that is called in the context in which this object was made."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.context = serialize_context()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with hydrated_context(self.context):
            return self.fn(*args, **kwargs)


def with_context(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` to be called with what is current now, also in another process: for pools of one's own. It can be
    pickled if `fn` can. Task calls in it are not recorded in the flow run's log, see :func:`hydrated_context`."""
    return _InContext(fn)

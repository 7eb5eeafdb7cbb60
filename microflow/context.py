# SPDX-License-Identifier: Apache-2.0
"""What is current: the flow run, the task run, the tags.

Contexts are context variables: they follow into asyncio tasks by themselves and into the threads of a
runner because submitting copies them. A thread that a user starts has none, and a flow called there
is a root run.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from contextvars import ContextVar, Token
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ._waits import RUN_IS_ASYNC, now_us, to_datetime
from .exceptions import MissingContextError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from types import TracebackType

    from ._timeouts import Limit
    from .client.live import LiveRun
    from .client.objects import FlowRun, TaskRun
    from .client.orchestration import SyncClient
    from .flows import Flow
    from .task_runners import TaskRunner
    from .tasks import Task

C = TypeVar("C", bound="ContextModel")


class ContextModel:
    """A thing that is current between ``with`` and its end. An object can be entered once at a time."""

    __slots__ = ("_tokens",)
    _current: ClassVar[ContextVar[Any]]

    def __init__(self) -> None:
        self._tokens: tuple[Token[Any], Token[bool | None] | None] | None = None

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
        colour = self._colour()
        self._tokens = (self._current.set(self), None if colour is None else RUN_IS_ASYNC.set(colour))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tokens is None:
            raise RuntimeError("Asymmetric use of context. It was not entered.")
        (current, colour), self._tokens = self._tokens, None
        self._current.reset(current)
        if colour is not None:
            RUN_IS_ASYNC.reset(colour)

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

    __slots__ = ("_pauses", "_start", "client", "flow", "flow_run", "live", "parameters", "parent", "task_runner")
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
        #: the flow run that called this one as a subflow
        self.parent = FlowRunContext.get()
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

    __slots__ = ("_start", "client", "limit", "parameters", "task", "task_run")
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

# SPDX-License-Identifier: Apache-2.0
"""``@task`` and :class:`Task`: a function whose calls are recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypedDict, TypeVar, overload

from ._arguments import unmapped
from ._definitions import Definition
from .context import FlowRunContext
from .settings import current_settings
from .states import StateType
from .task_engine import run_task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Concatenate, Literal

    from typing_extensions import Unpack

    from .client.objects import TaskRun
    from .futures import ConcurrentFuture, FutureList, RunFuture
    from .states import State

    Condition = Callable[["Task[Any, Any]", TaskRun, "State[Any]"], object]
    Hook = Callable[..., object]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")

#: no list of delays may be longer
MAXIMUM_DELAYS = 50


class TaskOptions(TypedDict, total=False):
    """The options of a task, said once for ``@task``, ``Task`` and ``with_options``."""

    #: the function's name unless given
    name: str | None
    #: the function's docstring unless given
    description: str | None
    #: given to every run, beside those of ``tags(...)``
    tags: Iterable[str] | None
    #: part of a call's identity in a re-execution: change it to have ended calls run again
    version: str | None
    #: a template for ``str.format`` with the parameters, or a callable, which may take ``parameters``
    task_run_name: str | Callable[..., str] | None
    #: how often a failed run is tried again
    retries: int | None
    #: seconds before each retry: a number, a list with one item for each retry (the last repeats), or a
    #: callable that is given ``retries`` and returns such a list
    retry_delay_seconds: float | list[float] | Callable[[int], list[float]] | None
    #: lengthens each delay by a random share of up to this factor
    retry_jitter_factor: float | None
    #: called with task, task run and the failed state; a false answer ends the retries
    retry_condition_fn: Condition | None
    #: called with task, task run and state after the run completed
    on_completion: Iterable[Hook] | None
    #: called likewise after the run failed for good
    on_failure: Iterable[Hook] | None
    #: called likewise each time the run enters RUNNING
    on_running: Iterable[Hook] | None


_FALSY_KEEPS = frozenset(
    {"name", "description", "tags", "version", "on_completion", "on_failure", "on_running", "retry_condition_fn"}
)


def exponential_backoff(backoff_factor: float) -> Callable[[int], list[float]]:
    """Delays that double: ``backoff_factor`` seconds, then twice that, and so on, for each retry."""

    def delays(retries: int) -> list[float]:
        return [backoff_factor * 2**retry for retry in range(min(retries, MAXIMUM_DELAYS))]

    return delays


class Task(Definition, Generic[P, R]):
    """A function whose calls are task runs: recorded, retried, and handed back in a re-execution.

    Call it to run it here, ``submit`` it to run it in the flow's task runner, ``map`` it over iterables."""

    hook_types = {  # noqa: RUF012 - never changed
        "on_completion": StateType.COMPLETED,
        "on_failure": StateType.FAILED,
        "on_running": StateType.RUNNING,
    }

    def __init__(self, fn: Callable[P, R], **options: Unpack[TaskOptions]) -> None:
        super().__init__(fn, options, TaskOptions.__annotations__)
        if self.isgenerator:
            raise TypeError(f"{self.name!r} is a generator function; generator tasks are not supported yet")
        self.tags = set(options.get("tags") or ())
        self.task_run_name = options.get("task_run_name")
        self._check_run_name(self.task_run_name)
        settings = current_settings()
        retries, delay = options.get("retries"), options.get("retry_delay_seconds")
        self.retries = settings.default_task_retries if retries is None else retries
        self.retry_delay_seconds = _delays(
            settings.default_task_retry_delay_seconds if delay is None else delay, self.retries
        )
        self.retry_jitter_factor = options.get("retry_jitter_factor")
        if self.retry_jitter_factor is not None and self.retry_jitter_factor < 0:
            raise ValueError(f"`retry_jitter_factor` must be >= 0, got {self.retry_jitter_factor}")
        self.retry_condition_fn = options.get("retry_condition_fn")
        if self.retry_condition_fn is not None and not callable(self.retry_condition_fn):
            raise TypeError(f"`retry_condition_fn` must be callable, got {type(self.retry_condition_fn).__name__}")
        for option in self.hook_types:
            self._set_hooks(option, options.get(option))  # type: ignore[arg-type]  # a hook option by its name
        self.task_key = f"{self.qualified_name.rpartition('.')[2]}-{self.code_digest()}"
        #: what a call of this task is known by in a re-execution, beside its inputs
        self.call_identity = f"task {self.qualified_name} {self.name} {self.version}".encode()
        #: the retry policy as its runs record it
        self.policy: dict[str, Any] = {}
        if self.retries:
            self.policy = {"retries": self.retries, "retry_delay": self.retry_delay_seconds}
            if self.retry_jitter_factor:
                self.policy["retry_jitter_factor"] = self.retry_jitter_factor

    def _run_name_option(self) -> Any:
        return self.task_run_name

    def with_options(self, **options: Unpack[TaskOptions]) -> Task[P, R]:
        """A new task over the same function with some options replaced; this one stays as it is.

        An empty name, description, version, tags or hook list keeps the old one; None for any other option
        takes it back to its default."""
        replaced = {name: value for name, value in options.items() if value or name not in _FALSY_KEEPS}
        return self._twin({"tags": set(self.tags), **replaced})

    # --------------------------------------------------------------------------------------------- calling

    if TYPE_CHECKING:  # what binding a method does to its type; at run time it is the Definition's

        @overload
        def __get__(self, instance: None, owner: type | None = None) -> Task[P, R]: ...
        @overload
        def __get__(self: Task[Concatenate[Any, Q], R], instance: object, owner: type | None = None) -> Task[Q, R]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, *args: Any, return_state: Literal[False] = ..., wait_for: Any, **kwargs: Any) -> R: ...
    @overload
    def __call__(
        self: Task[P, Coroutine[Any, Any, T]],
        *args: Any,
        return_state: Literal[True],
        wait_for: Any = ...,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, State[T]]: ...
    @overload
    def __call__(self, *args: Any, return_state: Literal[True], wait_for: Any = ..., **kwargs: Any) -> State[R]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task here and now: its result, or its final state with `return_state`.

        A coroutine task gives a coroutine. An upstream in `wait_for` or among the arguments that did not
        complete leaves the run NotReady, and the call gives None."""
        return_type = "state" if kwargs.pop("return_state", False) else "result"
        wait_for = kwargs.pop("wait_for", None)
        return run_task(self, parameters=self.bind(args, kwargs), wait_for=wait_for, return_type=return_type)

    @overload
    def submit(
        self: Task[P, Coroutine[Any, Any, T]], *args: Any, return_state: Literal[False] = ..., **kwargs: Any
    ) -> ConcurrentFuture[T]: ...
    @overload
    def submit(
        self: Task[P, R], *args: Any, return_state: Literal[False] = ..., **kwargs: Any
    ) -> ConcurrentFuture[R]: ...
    @overload
    def submit(
        self: Task[P, Coroutine[Any, Any, T]], *args: Any, return_state: Literal[True], **kwargs: Any
    ) -> State[T]: ...
    @overload
    def submit(self: Task[P, R], *args: Any, return_state: Literal[True], **kwargs: Any) -> State[R]: ...

    def submit(
        self, *args: Any, return_state: bool = False, wait_for: Iterable[RunFuture[Any]] | None = None, **kwargs: Any
    ) -> Any:
        """Run the task in the flow's task runner; returns a future at once, or waits for the final state
        with `return_state`. RuntimeError outside of a flow."""
        parameters = self.bind(args, kwargs)
        future = self._runner().submit(self, parameters, wait_for)
        if return_state:
            future.wait()
            return future.state
        return future

    @overload
    def map(
        self: Task[P, Coroutine[Any, Any, T]], *args: Any, return_state: Literal[True], **kwargs: Any
    ) -> list[State[T]]: ...
    @overload
    def map(self: Task[P, R], *args: Any, return_state: Literal[True], **kwargs: Any) -> list[State[R]]: ...
    @overload
    def map(
        self: Task[P, Coroutine[Any, Any, T]], *args: Any, return_state: Literal[False] = ..., **kwargs: Any
    ) -> FutureList[T]: ...
    @overload
    def map(self: Task[P, R], *args: Any, return_state: Literal[False] = ..., **kwargs: Any) -> FutureList[R]: ...

    def map(
        self, *args: Any, return_state: bool = False, wait_for: Iterable[RunFuture[Any]] | None = None, **kwargs: Any
    ) -> Any:
        """Submit one run for each element of the iterable arguments; see ``TaskRunner.map``.

        Returns a list of futures, or waits and returns the states with `return_state`."""
        parameters = self.bind(args, kwargs, apply_defaults=False)
        for name in self.bound_names:  # the object that a method is bound to may be iterable
            parameters[name] = unmapped(parameters[name])
        futures = self._runner().map(self, parameters, wait_for)
        if return_state:
            futures.wait()
            return [future.state for future in futures]
        return futures

    def _runner(self) -> Any:
        context = FlowRunContext.get()
        if context is None:
            raise RuntimeError(
                f"task {self.name!r} can be submitted or mapped only while a flow runs; "
                f"call it to run it here, or call it from a flow"
            )
        return context.task_runner

    def __repr__(self) -> str:
        return f"<Task {self.name!r}>"


def _delays(given: Any, retries: int) -> float | list[float] | None:
    delays = given(retries) if callable(given) else given
    if isinstance(delays, list):
        if len(delays) > MAXIMUM_DELAYS:
            raise ValueError(f"Can not configure more than {MAXIMUM_DELAYS} retry delays per task, got {len(delays)}")
        return delays
    if delays is not None and not isinstance(delays, (int, float)):
        raise TypeError(
            f"Invalid `retry_delay_seconds` provided; must be a number, a list or a callable, "
            f"got {type(delays).__name__}"
        )
    return delays or None


@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(fn: None = None, /, **options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(fn: Callable[P, R] | None = None, /, **options: Unpack[TaskOptions]) -> Any:
    """Make a function a task: ``@task``, or ``@task(retries=3, …)`` with the options of :class:`TaskOptions`."""
    if fn is None:
        return lambda function: Task(function, **options)
    return Task(fn, **options)

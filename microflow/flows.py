# SPDX-License-Identifier: Apache-2.0
"""``@flow`` and :class:`Flow`: a function whose calls are flow runs, each with a log of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypedDict, TypeVar, overload

from ._definitions import Definition
from .entrypoints import load_entrypoint
from .exceptions import InvalidNameError, MissingFlowError
from .flow_engine import ReturnType, run_flow
from .settings import current_settings
from .states import StateType
from .task_runners import TaskRunner, ThreadPoolTaskRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Concatenate, Literal

    from typing_extensions import Unpack

    from .states import State

    Hook = Callable[..., object]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")

_FORBIDDEN = "/%&><"


class FlowOptions(TypedDict, total=False):
    """The options of a flow, said once for ``@flow``, ``Flow`` and ``with_options``."""

    #: the function's name with ``-`` for ``_`` unless given
    name: str | None
    #: the function's docstring unless given
    description: str | None
    #: recorded with each run
    version: str | None
    #: a template for ``str.format`` with the parameters, or a callable
    flow_run_name: str | Callable[..., str] | None
    #: how often a failed run is tried again, from the top
    retries: int | None
    #: seconds before each retry
    retry_delay_seconds: float | None
    #: where submitted tasks run: a runner, or a class of runners; threads unless given
    task_runner: TaskRunner[Any] | type[TaskRunner[Any]] | None
    #: called with flow, flow run and state after the run completed
    on_completion: Iterable[Hook] | None
    #: called likewise after the run failed for good
    on_failure: Iterable[Hook] | None
    #: called likewise when the run was asked to stop
    on_cancellation: Iterable[Hook] | None
    #: called likewise after the run was interrupted
    on_crashed: Iterable[Hook] | None
    #: called likewise each time the run enters RUNNING
    on_running: Iterable[Hook] | None


_ZERO_COUNTS = frozenset({"retries", "retry_delay_seconds"})


class Flow(Definition, Generic[P, R]):
    """A function whose calls are flow runs. A call made while another flow runs is a subflow."""

    hook_types = {  # noqa: RUF012 - never changed
        "on_completion": StateType.COMPLETED,
        "on_failure": StateType.FAILED,
        "on_cancellation": StateType.CANCELLING,
        "on_crashed": StateType.CRASHED,
        "on_running": StateType.RUNNING,
    }

    def __init__(self, fn: Callable[P, R], **options: Unpack[FlowOptions]) -> None:
        name = options.get("name")
        if name and not isinstance(name, str):
            hint = " Perhaps you meant to call it?" if callable(name) else ""
            raise TypeError(f"Expected string for flow parameter 'name'; got {type(name).__name__} instead.{hint}")
        super().__init__(fn, options, FlowOptions.__annotations__)
        if not name:
            self.name = "unknown-lambda" if self.name == "<lambda>" else self.name.replace("_", "-")
        if any(character in self.name for character in _FORBIDDEN):
            raise InvalidNameError(
                f"Flow name {self.name!r} contains an invalid character. Names may not hold any of: {_FORBIDDEN}"
            )
        if self.isgenerator:
            raise TypeError(f"{self.name!r} is a generator function; generator flows are not supported yet")
        self.flow_run_name = options.get("flow_run_name")
        self._check_run_name(self.flow_run_name)
        settings = current_settings()
        retries, delay = options.get("retries"), options.get("retry_delay_seconds")
        self.retries = settings.default_flow_retries if retries is None else retries
        self.retry_delay_seconds = float(settings.default_flow_retry_delay_seconds if delay is None else delay)
        runner = options.get("task_runner")
        if isinstance(runner, type):
            runner = runner()
        #: a template: each attempt of a run uses a duplicate
        self.task_runner: TaskRunner[Any] = runner if runner is not None else ThreadPoolTaskRunner()
        for option in self.hook_types:
            self._set_hooks(option, options.get(option))  # type: ignore[arg-type]  # a hook option by its name
        self.call_version = options.get("version") or ""

    def _run_name_option(self) -> Any:
        return self.flow_run_name

    def with_options(self, **options: Unpack[FlowOptions]) -> Flow[P, R]:
        """A new flow over the same function with some options replaced; this one stays as it is.

        None and empty values keep the old option; ``retries=0`` and ``retry_delay_seconds=0`` count."""
        return self._twin(
            {name: value for name, value in options.items() if value or (name in _ZERO_COUNTS and value is not None)}
        )

    if TYPE_CHECKING:  # what binding a method does to its type; at run time it is the Definition's

        @overload
        def __get__(self, instance: None, owner: type | None = None) -> Flow[P, R]: ...
        @overload
        def __get__(self: Flow[Concatenate[Any, Q], R], instance: object, owner: type | None = None) -> Flow[Q, R]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, *args: Any, return_state: Literal[False] = ..., wait_for: Any, **kwargs: Any) -> R: ...
    @overload
    def __call__(
        self: Flow[P, Coroutine[Any, Any, T]],
        *args: Any,
        return_state: Literal[True],
        wait_for: Any = ...,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, State[T]]: ...
    @overload
    def __call__(self, *args: Any, return_state: Literal[True], wait_for: Any = ..., **kwargs: Any) -> State[R]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow: its result, or its final state with `return_state`. A coroutine flow gives a coroutine.

        ParameterBindError before any run exists when the arguments do not fit."""
        return_type: ReturnType = "state" if kwargs.pop("return_state", False) else "result"
        wait_for = kwargs.pop("wait_for", None)
        return run_flow(self, None, self.bind(args, kwargs), wait_for, return_type)

    # ----------------------------------------------------------------------------------------------- hooks

    def on_cancellation(self, fn: Callable[..., T]) -> Callable[..., T]:
        """Decorate a function to be called with flow, flow run and state when a run was asked to stop."""
        return self._hook("on_cancellation", fn)

    def on_crashed(self, fn: Callable[..., T]) -> Callable[..., T]:
        """Decorate a function to be called likewise after a run was interrupted."""
        return self._hook("on_crashed", fn)

    def __repr__(self) -> str:
        return f"<Flow {self.name!r}>"


@overload
def flow(fn: Callable[P, R], /) -> Flow[P, R]: ...
@overload
def flow(fn: None = None, /, **options: Unpack[FlowOptions]) -> Callable[[Callable[P, R]], Flow[P, R]]: ...


def flow(fn: Callable[P, R] | None = None, /, **options: Unpack[FlowOptions]) -> Any:
    """Make a function a flow: ``@flow``, or ``@flow(retries=3, …)`` with the options of :class:`FlowOptions`."""
    if fn is None:
        return lambda function: Flow(function, **options)
    return Flow(fn, **options)


def load_flow_from_entrypoint(entrypoint: str) -> Flow[Any, Any]:
    """The flow that ``path.py:name`` or ``module:name`` names. MissingFlowError when there is none,
    ScriptError when the script raises."""
    found = load_entrypoint(entrypoint)
    if not isinstance(found, Flow):
        raise MissingFlowError(
            f"{entrypoint!r} is a {type(found).__name__}, not a flow; name a function that is decorated with @flow"
        )
    return found

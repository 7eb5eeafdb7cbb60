# SPDX-License-Identifier: Apache-2.0
"""``@flow`` and :class:`Flow`: a function whose calls are flow runs, each with a log of its own."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from ._definitions import Definition
from ._digests import blake2b
from ._typing_only import TypedDict
from .entrypoints import entrypoint_of, load_entrypoint
from .exceptions import InvalidNameError, MissingFlowError
from .flow_engine import ReturnType, run_flow
from .settings import current_settings
from .states import StateType
from .task_runners import TaskRunner, ThreadPoolTaskRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Concatenate, Literal

    from typing_extensions import Unpack

    from ._serving import ToBeDeployed
    from .coercion import Checks
    from .states import State

    Hook = Callable[..., object]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)  # see tasks
T = TypeVar("T")
H = TypeVar("H", bound="Callable[..., Any]")

_FORBIDDEN = "/%&><"


class FlowOptions(TypedDict, total=False):
    """The options of a flow, said once for ``@flow``, ``Flow`` and ``with_options``."""

    #: the function's name with ``-`` for ``_`` unless given
    name: str | None
    #: the function's docstring unless given
    description: str | None
    #: recorded with each run; unless given a hash of the file that defines the function, which is not recorded
    version: str | None
    #: a template for ``str.format`` with the parameters, or a callable without arguments
    flow_run_name: str | Callable[..., str] | None
    #: how often a failed run is tried again, from the top
    retries: int | None
    #: seconds before each retry
    retry_delay_seconds: float | None
    #: where submitted tasks run: a runner, or a class of runners; threads unless given
    task_runner: TaskRunner[Any] | type[TaskRunner[Any]] | None
    #: seconds that one attempt may take; none unless given
    timeout_seconds: float | None
    #: whether parameters are checked against the annotations, and made what they say; True unless given
    validate_parameters: bool | None
    #: whether results are persisted for caching; True if a storage or serializer is given, else what is around it
    persist_result: bool | None
    #: where and how results are persisted, also those of the tasks in the flow
    result_storage: Any
    result_serializer: Any
    #: accepted for the reference's sake; the caller gets the value in either case
    cache_result_in_memory: bool | None
    #: whether ``print`` in the flow becomes a log record; what is around it, else the setting, unless given
    log_prints: bool | None
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


#: how often the annotations are read while names in them cannot be resolved; then these are left alone
_READINGS = 3

#: options of which None says something; of all others it means: as it was
_NONE_COUNTS = frozenset({"persist_result", "result_storage", "result_serializer", "log_prints"})
#: options of which an empty value says something; of a text or a list of hooks it means: as it was
_EMPTY_COUNTS = frozenset(
    {"retries", "retry_delay_seconds", "timeout_seconds", "validate_parameters", "cache_result_in_memory"}
)


class Flow(Definition, Generic[P, R_co]):
    """A function whose calls are flow runs. A call made while another flow runs is a subflow."""

    hook_types = {  # noqa: RUF012 - never changed
        "on_completion": StateType.COMPLETED,
        "on_failure": StateType.FAILED,
        "on_cancellation": StateType.CANCELLING,
        "on_crashed": StateType.CRASHED,
        "on_running": StateType.RUNNING,
    }

    def __init__(self, fn: Callable[P, R_co], **options: Unpack[FlowOptions]) -> None:
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
        seconds = options.get("timeout_seconds")
        self.timeout_seconds = float(seconds) if seconds else None
        self.should_validate_parameters = options.get("validate_parameters") is not False
        self.result_storage, self.result_serializer = options.get("result_storage"), options.get("result_serializer")
        persist = options.get("persist_result")
        if persist is None and (self.result_storage is not None or self.result_serializer is not None):
            persist = True
        self.persist_result = persist
        self.cache_result_in_memory = options.get("cache_result_in_memory") is not False
        self.log_prints = options.get("log_prints")
        self._checks: list[Checks] = []  # shared with bound copies; filled by the first call

    def _run_name_option(self) -> Any:
        return self.flow_run_name

    def with_options(self, **options: Unpack[FlowOptions]) -> Flow[P, R_co]:
        """A new flow over the same function with some options replaced; this one stays as it is.

        None keeps the old option, but for what a run inherits from around it (``log_prints``, ``persist_result``,
        ``result_storage``, ``result_serializer``). An empty text and an empty list of hooks keep it too; 0 and False
        count, so ``timeout_seconds=0`` takes the timeout off."""

        def counts(name: str, value: Any) -> bool:
            return bool(value) or (name in _NONE_COUNTS) or (name in _EMPTY_COUNTS and value is not None)

        return self._twin({name: value for name, value in options.items() if counts(name, value)})

    if TYPE_CHECKING:  # what binding a method does to its type; at run time it is the Definition's

        @overload
        def __get__(self, instance: None, owner: type | None = None) -> Flow[P, R_co]: ...
        @overload
        def __get__(
            self: Flow[Concatenate[Any, Q], R_co], instance: object, owner: type | None = None
        ) -> Flow[Q, R_co]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Any, return_state: Literal[False] = ..., wait_for: Any, **kwargs: Any) -> R_co: ...
    @overload
    def __call__(
        self: Flow[P, Coroutine[Any, Any, T]],
        *args: Any,
        return_state: Literal[True],
        wait_for: Any = ...,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, State[T]]: ...
    @overload
    def __call__(self, *args: Any, return_state: Literal[True], wait_for: Any = ..., **kwargs: Any) -> State[R_co]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow: its result, or its final state with `return_state`. A coroutine flow gives a coroutine.

        ParameterBindError before any run exists when the arguments do not fit."""
        return_type: ReturnType = "state" if kwargs.pop("return_state", False) else "result"
        wait_for = kwargs.pop("wait_for", None)
        return run_flow(self, None, self.bind(args, kwargs), wait_for, return_type)

    # ------------------------------------------------------------------------------------------ parameters

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters as the annotations want them: ``"5"`` for an int becomes 5, a dict for a dataclass an object
        of it. What has no annotation, and objects of classes, stay the very objects; lists and dicts are new ones.

        ParameterTypeError, with every problem of every parameter. Futures must have been resolved before."""
        known = self._checks
        settled = known and (known[-1].complete or len(known) >= _READINGS)
        checks = known[-1] if settled else self._read_annotations()
        return parameters if checks is None else checks.take(parameters)

    def _read_annotations(self) -> Checks | None:
        if not self.parameters.names or not _has_annotations(self.fn):
            return None
        from .coercion import Checks  # 2 ms: only for flows that have annotations, when they are first called

        checks = Checks(self.fn, self.parameters)
        self._checks.append(checks)
        return checks

    def parameter_schema(self) -> dict[str, Any]:
        """The JSON schema of the parameters, for tools that ask people for them."""
        from .coercion import Checks  # 2 ms: rarely needed

        return Checks(self.fn, self.parameters).schema()

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters in plain JSON, for people; what JSON cannot carry is ``"<TypeName>"``, never an error."""
        from ._plain_json import plain  # rare: only for who asks what it would look like

        bound = self.bound_names
        return {name: plain(value) for name, value in parameters.items() if name not in bound}

    # --------------------------------------------------------------------------------------------- serving

    def to_deployment(
        self,
        name: str | None = None,
        *,
        parameters: dict[str, Any] | None = None,
        tags: Iterable[str] = (),
        description: str | None = None,
        version: str | None = None,
    ) -> ToBeDeployed:
        """The flow with a deployment, for :func:`~microflow.worker.serve`, which writes it when it begins. The flow's
        name unless `name` is given; of a file name like ``__file__`` the stem."""
        from ._serving import ToBeDeployed  # few programs serve

        name = self.name if name is None else name
        name = os.path.splitext(os.path.basename(name))[0] if name.endswith(".py") else name
        return ToBeDeployed(self, name, parameters=parameters, tags=tags, description=description, version=version)

    def serve(
        self,
        name: str | None = None,
        *,
        parameters: dict[str, Any] | None = None,
        tags: Iterable[str] = (),
        description: str | None = None,
        version: str | None = None,
        limit: int | None = 5,
        timeout: float | None = None,
    ) -> Any:
        """Deploy the flow under `name` and run its runs, at most `limit` at a time, until SIGTERM or Ctrl-C, or for
        `timeout` seconds: all runs of the flow, whatever made them. In async code a coroutine. Several flows, and
        tasks, are served together by :func:`~microflow.worker.serve`."""
        from .worker import serve  # few programs serve

        deployed = self.to_deployment(name, parameters=parameters, tags=tags, description=description, version=version)
        return serve(deployed, limit=limit, timeout=timeout)

    # ----------------------------------------------------------------------------------------- what it is

    @property
    def version(self) -> str | None:
        """The given version, else a hash of the source file; None when there is no such file."""
        return self._version or _source_version(self.fn)

    @version.setter
    def version(self, version: str | None) -> None:
        self._version = version

    @property
    def ismethod(self) -> bool:
        """Whether this is bound to an object."""
        return bool(self._bound) and not self.isclassmethod

    @property
    def _entrypoint(self) -> str:
        """``"<file or module>:<qualname>"``; one that holds ``<locals>`` cannot be loaded."""
        return entrypoint_of(self.fn) or f"{getattr(self.fn, '__module__', None)}:{self.qualified_name}"

    # ----------------------------------------------------------------------------------------------- hooks

    @property
    def on_completion_hooks(self) -> list[Hook]:
        """The hooks of this flow, as they will be called; likewise the following."""
        return self.hooks.setdefault(StateType.COMPLETED, [])

    @property
    def on_failure_hooks(self) -> list[Hook]:
        """The hooks for failed runs."""
        return self.hooks.setdefault(StateType.FAILED, [])

    @property
    def on_cancellation_hooks(self) -> list[Hook]:
        """The hooks for runs that are asked to stop."""
        return self.hooks.setdefault(StateType.CANCELLING, [])

    @property
    def on_crashed_hooks(self) -> list[Hook]:
        """The hooks for interrupted runs."""
        return self.hooks.setdefault(StateType.CRASHED, [])

    @property
    def on_running_hooks(self) -> list[Hook]:
        """The hooks for runs that enter RUNNING."""
        return self.hooks.setdefault(StateType.RUNNING, [])

    def on_cancellation(self, fn: H) -> H:
        """Decorate a function to be called with flow, flow run and state when a run was asked to stop."""
        return self._hook("on_cancellation", fn)

    def on_crashed(self, fn: H) -> H:
        """Decorate a function to be called likewise after a run was interrupted."""
        return self._hook("on_crashed", fn)

    def __repr__(self) -> str:
        return f"<Flow {self.name!r}>"


def _has_annotations(fn: Any) -> bool:
    """Whether a plain function has annotated parameters; anything else may have."""
    if sys.version_info >= (3, 14):  # asking for them evaluates them
        return getattr(fn, "__annotate__", True) is not None
    annotations = getattr(fn, "__annotations__", None)
    return annotations is None or bool(annotations.keys() - {"return"})


_source_versions: dict[str, str | None] = {}  # of a file; it is read once, as the code was


def _source_version(fn: Any) -> str | None:
    path = getattr(getattr(fn, "__code__", None), "co_filename", None)
    if not isinstance(path, str) or path.startswith("<"):
        return None
    if path not in _source_versions:
        try:
            with open(path, "rb") as file:
                _source_versions[path] = blake2b(file.read(), digest_size=16).hexdigest()
        except OSError:
            _source_versions[path] = None
    return _source_versions[path]


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


def load_function_and_convert_to_flow(entrypoint: str) -> Flow[Any, Any]:
    """A flow, with its prints logged, made of the plain function that an entrypoint names; a flow stays what it is.
    RuntimeError when there is no such function."""
    try:
        found = load_entrypoint(entrypoint)
    except MissingFlowError as problem:
        raise RuntimeError(str(problem)) from problem
    return found if isinstance(found, Flow) else Flow(found, log_prints=True)

# SPDX-License-Identifier: Apache-2.0
"""``@task`` and :class:`Task`: a function whose calls are recorded."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from . import _task_options as options_of
from ._arguments import NotSet, read_wait_for, unmapped
from ._definitions import Definition
from ._task_options import TaskOptions, exponential_backoff
from .calls import deferred_call, new_call
from .client.orchestration import current_client
from .context import FlowRunContext, describe_context
from .futures import DistributedFuture, FutureList
from .settings import current_settings
from .states import Pending, Scheduled, StateType
from .task_engine import run_task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
    from typing import Concatenate, Literal
    from uuid import UUID

    from typing_extensions import Unpack

    from .client.objects import TaskRun, TaskRunInput
    from .context import TaskRunContext
    from .futures import ConcurrentFuture, RunFuture
    from .states import State

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
# covariant: a task that gives a coroutine is a task that gives something to await, for every type checker
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
H = TypeVar("H", bound="Callable[..., Any]")

# attributes that stand as their option was given, so that with_options also keeps what was assigned to them. What
# follows from several options (`cache_policy`, `persist_result`) is derived again from what was given.
_MIRRORED = (
    "name",
    "description",
    "tags",
    "version",
    "task_run_name",
    "retries",
    "retry_jitter_factor",
    "retry_condition_fn",
    "timeout_seconds",
    "at_most_once",
    "log_prints",
    "cache_key_fn",
    "cache_expiration",
    "refresh_cache",
    "result_storage",
    "result_serializer",
    "result_storage_key",
    "cache_result_in_memory",
)


def _load_transactions() -> None:
    """Called for tasks that have to do with them: engines open none before their module is loaded."""
    import_module(".transactions", __package__)  # only for programs with transactions


class Task(Definition, Generic[P, R_co]):
    """A function whose calls are task runs: recorded, retried, and handed back in a re-execution.

    Call it to run it here, ``submit`` it to run it in the flow's task runner, ``map`` it over iterables."""

    #: the assets that its runs make, and the tool that makes them for it; a plain task makes none
    assets: Sequence[Any] = ()
    materialized_by: str | None = None

    hook_types = {  # noqa: RUF012 - never changed
        "on_completion": StateType.COMPLETED,
        "on_failure": StateType.FAILED,
        "on_running": StateType.RUNNING,
    }

    def __init__(self, fn: Callable[P, R_co], **options: Unpack[TaskOptions]) -> None:
        given: Any = {name: value for name, value in options.items() if value is not NotSet}
        super().__init__(fn, given, TaskOptions.__annotations__)
        self.tags = options_of.set_of_tags(given.get("tags"))
        self.task_run_name = given.get("task_run_name")
        self._check_run_name(self.task_run_name)
        self._set_retries(given)
        self.timeout_seconds = options_of.timeout(given.get("timeout_seconds"))
        self.at_most_once = bool(given.get("at_most_once"))
        self.log_prints: bool | None = given.get("log_prints")
        self._set_storing(given)
        for option in self.hook_types:
            self._set_hooks(option, given.get(option))
        #: called with the transaction when it is committed, and when it is rolled back
        self.on_commit_hooks = self._listed_hooks("on_commit", given.get("on_commit"))
        self.on_rollback_hooks = self._listed_hooks("on_rollback", given.get("on_rollback"))
        self.task_key = f"{self.qualified_name.rpartition('.')[2]}-{self.code_digest()}"
        #: what a call of this task is known by in a re-execution, beside its inputs
        self.call_identity = f"task {self.qualified_name} {self.name} {self.version}".encode()

        if self.persist_result:
            _load_transactions()

    def _listed_hooks(self, option: str, hooks: Iterable[Callable[..., Any]] | None) -> list[Callable[..., Any]]:
        listed = super()._listed_hooks(option, hooks)
        if listed and option in ("on_commit", "on_rollback"):
            _load_transactions()
        return listed

    def _set_retries(self, given: TaskOptions) -> None:
        settings = current_settings()
        retries, delay = given.get("retries"), given.get("retry_delay_seconds")
        self.retries = settings.default_task_retries if retries is None else options_of.retries(retries)
        self.retry_delay_seconds = options_of.retry_delays(
            settings.default_task_retry_delay_seconds if delay is None else delay, self.retries
        )
        self.retry_jitter_factor = options_of.jitter_factor(given.get("retry_jitter_factor"))
        self.retry_condition_fn = options_of.callable_or_none("retry_condition_fn", given.get("retry_condition_fn"))
        #: the retry policy as its runs record it
        self.policy: dict[str, Any] = {}
        if self.retries:
            self.policy = {"retries": self.retries, "retry_delay": self.retry_delay_seconds or None}
            if self.retry_jitter_factor:
                self.policy["retry_jitter_factor"] = self.retry_jitter_factor

    def _set_storing(self, given: TaskOptions) -> None:
        self.cache_key_fn = options_of.callable_or_none("cache_key_fn", given.get("cache_key_fn"))
        self.cache_expiration = options_of.expiration(given.get("cache_expiration"))
        self.refresh_cache: bool | None = given.get("refresh_cache")
        self._cache_policy, self.persist_result = options_of.caching(given, self.name)
        self.result_storage = given.get("result_storage")
        self.result_serializer = given.get("result_serializer")
        self.result_storage_key = given.get("result_storage_key")
        self.cache_result_in_memory = bool(given.get("cache_result_in_memory", True))
        self._asset_deps = list(given.get("asset_deps") or ())

    def _run_name_option(self) -> Any:
        return self.task_run_name

    @property
    def cache_policy(self) -> Any:
        """The policy in force: the one that was given, or what follows from the other options."""
        if isinstance(self._cache_policy, options_of.Unresolved):
            self._cache_policy = self._cache_policy.resolve(self.cache_key_fn)
        return self._cache_policy

    @cache_policy.setter
    def cache_policy(self, policy: Any) -> None:
        self._cache_policy = policy

    @property
    def source_code(self) -> str | None:
        """The text of the function, read when it is first asked for; None where there is none, as for a callable object
        or a function that was typed in."""
        if "_source_code" not in self.__dict__:
            import inspect  # 11 ms, for this alone

            try:
                self._source_code: str | None = inspect.getsource(self.fn)
            except (TypeError, OSError):
                self._source_code = None
        return self._source_code

    @property
    def has_default_policy(self) -> bool:
        """Whether the policy is the default one, told without loading it."""
        return self._cache_policy is options_of.DEFAULT

    @property
    def asset_deps(self) -> list[Any]:
        """The assets that the task reads beside those of its upstreams."""
        if not self._asset_deps:
            return []
        assets = import_module("._assets", __package__)  # only programs with assets load it
        return [assets.Asset(dep) if isinstance(dep, str) else dep for dep in self._asset_deps]

    def with_options(self, **options: Unpack[TaskOptions]) -> Task[P, R_co]:
        """A new task over the same function with some options replaced; this one stays as it is.

        An empty name, description, version, hook list or collection of tags or assets, and None for `cache_key_fn`,
        `cache_expiration`, `retry_condition_fn`, `cache_result_in_memory`, `timeout_seconds` and `at_most_once`, keep
        the old one; None for any other option takes it back to its default. Tags and hooks replace the old ones."""
        kept = {name: getattr(self, name) for name in _MIRRORED}
        if not callable(self._given.get("retry_delay_seconds")):
            kept["retry_delay_seconds"] = self.retry_delay_seconds
        kept.update(on_commit=self.on_commit_hooks, on_rollback=self.on_rollback_hooks)
        return self._twin({**kept, **options_of.replaced(options)})

    # ----------------------------------------------------------------------------------------------- hooks

    def on_commit(self, fn: H) -> H:
        """Decorate a function to be called with the transaction when the work of a run is committed."""
        self.on_commit_hooks += self._listed_hooks("on_commit", [fn])
        return fn

    def on_rollback(self, fn: H) -> H:
        """Decorate a function to be called with the transaction when the work of a run is rolled back."""
        self.on_rollback_hooks += self._listed_hooks("on_rollback", [fn])
        return fn

    # --------------------------------------------------------------------------------------------- calling

    if TYPE_CHECKING:  # what binding a method does to its type; at run time it is the Definition's

        @overload
        def __get__(self, instance: None, owner: type | None = None) -> Task[P, R_co]: ...
        @overload
        def __get__(
            self: Task[Concatenate[Any, Q], R_co], instance: object, owner: type | None = None
        ) -> Task[Q, R_co]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: Any, return_state: Literal[False] = ..., wait_for: Any, **kwargs: Any) -> R_co: ...
    @overload
    def __call__(
        self: Task[P, Coroutine[Any, Any, T]],
        *args: Any,
        return_state: Literal[True],
        wait_for: Any = ...,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, State[T]]: ...
    @overload
    def __call__(self, *args: Any, return_state: Literal[True], wait_for: Any = ..., **kwargs: Any) -> State[R_co]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task here and now: its result, or its final state with `return_state`.

        A coroutine task gives a coroutine. An upstream in `wait_for` or among the arguments that did not
        complete leaves the run NotReady, and the call gives None. A generator task gives a generator, and runs while
        that is consumed."""
        return_type: Literal["state", "result"] = "result"
        wait_for = None
        if kwargs:
            return_type = "state" if kwargs.pop("return_state", False) else "result"
            wait_for = kwargs.pop("wait_for", None)
        return run_task(self, parameters=self.bind(args, kwargs), wait_for=wait_for, return_type=return_type)

    @overload
    def submit(
        self: Task[P, Coroutine[Any, Any, T]], *args: Any, return_state: Literal[False] = ..., **kwargs: Any
    ) -> ConcurrentFuture[T]: ...
    @overload
    def submit(
        self: Task[P, R_co], *args: Any, return_state: Literal[False] = ..., **kwargs: Any
    ) -> ConcurrentFuture[R_co]: ...
    @overload
    def submit(
        self: Task[P, Coroutine[Any, Any, T]], *args: Any, return_state: Literal[True], **kwargs: Any
    ) -> State[T]: ...
    @overload
    def submit(self: Task[P, R_co], *args: Any, return_state: Literal[True], **kwargs: Any) -> State[R_co]: ...

    def submit(
        self, *args: Any, return_state: bool = False, wait_for: Iterable[RunFuture[Any]] | None = None, **kwargs: Any
    ) -> Any:
        """Run the task in the flow's task runner; returns a future at once, or waits for the final state
        with `return_state`. What a deferred task submits runs in threads of its worker. RuntimeError outside of
        both."""
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
    def map(self: Task[P, R_co], *args: Any, return_state: Literal[True], **kwargs: Any) -> list[State[R_co]]: ...
    @overload
    def map(
        self: Task[P, Coroutine[Any, Any, T]], *args: Any, return_state: Literal[False] = ..., **kwargs: Any
    ) -> FutureList[T]: ...
    @overload
    def map(self: Task[P, R_co], *args: Any, return_state: Literal[False] = ..., **kwargs: Any) -> FutureList[R_co]: ...

    def map(
        self,
        *args: Any,
        return_state: bool = False,
        wait_for: Iterable[RunFuture[Any]] | None = None,
        deferred: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Submit one run for each element of the iterable arguments; see ``TaskRunner.map``.

        Returns a list of futures, or waits and returns the states with `return_state`. With `deferred`, which works
        outside of flows too, the runs are recorded for a worker as by :meth:`apply_async`, and futures among the
        arguments are passed on as they are."""
        parameters = self.bind(args, kwargs, apply_defaults=False)
        for name in self.bound_names:  # the object that a method is bound to may be iterable
            parameters[name] = unmapped(parameters[name])
        if deferred:
            wait_for = read_wait_for(wait_for)
            return FutureList([self.defer(child, wait_for) for child in self.parameters.children(parameters)])
        futures = self._runner().map(self, parameters, wait_for)
        if return_state:
            futures.wait()
            return [future.state for future in futures]
        return futures

    # ---------------------------------------------------------------------------------------------- deferring

    @overload
    def apply_async(
        self: Task[P, Coroutine[Any, Any, T]],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        wait_for: Iterable[RunFuture[Any]] | None = None,
        dependencies: dict[str, set[TaskRunInput]] | None = None,
    ) -> DistributedFuture[T]: ...
    @overload
    def apply_async(
        self: Task[P, T],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        wait_for: Iterable[RunFuture[Any]] | None = None,
        dependencies: dict[str, set[TaskRunInput]] | None = None,
    ) -> DistributedFuture[T]: ...

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        wait_for: Iterable[RunFuture[Any]] | None = None,
        dependencies: dict[str, set[TaskRunInput]] | None = None,
    ) -> DistributedFuture[Any]:
        """Record a run for a worker to take, in this process or another; returns its future at once.

        Works inside of flows and outside. Arguments have to be carried to the other process: SerializationError, naming
        the one that cannot be, before anything is recorded. `dependencies` are added to the run's inputs."""
        parameters = self.bind(tuple(args or ()), dict(kwargs or {}))
        return self.defer(parameters, wait_for, dependencies)

    @overload
    def delay(
        self: Task[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> DistributedFuture[T]: ...
    @overload
    def delay(self: Task[P, R_co], *args: P.args, **kwargs: P.kwargs) -> DistributedFuture[R_co]: ...

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`apply_async` with the arguments as in a call. `wait_for` and `return_state` are no arguments here."""
        return self.apply_async(args, kwargs)

    def defer(
        self,
        parameters: dict[str, Any],
        wait_for: Iterable[RunFuture[Any]] | None,
        dependencies: dict[str, set[TaskRunInput]] | None = None,
    ) -> DistributedFuture[Any]:
        """:meth:`apply_async` with `parameters` that are bound already, by name."""
        wait_for = read_wait_for(wait_for)
        task_run = deferred_call(self, parameters, wait_for, dependencies)
        recorded = current_client().create_task_run(
            self, task_run, parameters=parameters, wait_for=wait_for, context=describe_context()
        )
        return DistributedFuture(recorded.id)

    def serve(
        self, *, limit: int | None = 10, status_server_port: int | None = None, timeout: float | None = None
    ) -> Any:
        """Take and run deferred runs of this task; see :func:`~microflow.worker.serve`."""
        from .worker import serve  # only workers load it

        return serve(self, limit=limit, status_server_port=status_server_port, timeout=timeout)

    async def aserve(
        self, *, limit: int | None = 10, status_server_port: int | None = None, timeout: float | None = None
    ) -> None:
        """The coroutine form of :meth:`serve`."""
        from .worker import aserve  # only workers load it

        await aserve(self, limit=limit, status_server_port=status_server_port, timeout=timeout)

    async def create_run(
        self,
        client: Any = None,
        id: UUID | None = None,
        parameters: dict[str, Any] | None = None,
        flow_run_context: FlowRunContext | None = None,
        parent_task_run_context: TaskRunContext | None = None,
        wait_for: Iterable[RunFuture[Any]] | None = None,
        extra_task_inputs: dict[str, set[TaskRunInput]] | None = None,
        deferred: bool = False,
    ) -> TaskRun:
        """Record a run without running it: PENDING, for ``run_task(task, task_run=…)``; or with `deferred` SCHEDULED,
        for a worker. The contexts, unless given, are the current ones."""
        client = getattr(client, "_client", client) or current_client()
        with _contexts(flow_run_context, parent_task_run_context):
            if deferred:
                task_run = deferred_call(self, parameters or {}, wait_for, extra_task_inputs, id)
                recorded: TaskRun = client.create_task_run(
                    self, task_run, parameters=parameters, wait_for=wait_for, context=describe_context()
                )
                return recorded
            call = new_call(self, parameters or {}, wait_for, extra_task_inputs, id)
        if not call.task_run.recorded:
            call.recorder.create_tasks([(call.task_run, _first_state(call.task_run, False), self.source_digest)])
        return call.task_run

    async def create_local_run(
        self,
        client: Any = None,
        id: UUID | None = None,
        parameters: dict[str, Any] | None = None,
        flow_run_context: FlowRunContext | None = None,
        parent_task_run_context: TaskRunContext | None = None,
        wait_for: Iterable[RunFuture[Any]] | None = None,
        extra_task_inputs: dict[str, set[TaskRunInput]] | None = None,
        deferred: bool = False,
    ) -> TaskRun:
        """The object of a run that is recorded nowhere yet: PENDING, or SCHEDULED with `deferred`. The engine that
        runs it records it (``run_task(task, task_run=…)``)."""
        with _contexts(flow_run_context, parent_task_run_context):
            task_run = deferred_call(self, parameters or {}, wait_for, extra_task_inputs, id)
        task_run.enter(_first_state(task_run, deferred))
        return task_run

    def _runner(self) -> Any:
        context = FlowRunContext.get()
        if context is not None:
            return context.task_runner
        from ._submitting import RUNNER_OUTSIDE_FLOWS  # loaded by now wherever there is one

        runner = RUNNER_OUTSIDE_FLOWS.get()
        if runner is None:
            raise RuntimeError(
                f"task {self.name!r} can be submitted or mapped only while a flow or a deferred task runs; "
                f"call it to run it here, call it from a flow, or have a worker run it: {self.name}.delay(...)"
            )
        return runner

    def __repr__(self) -> str:
        return f"<Task {self.name!r}>"


def _first_state(task_run: TaskRun, deferred: bool) -> State[Any]:
    state: State[Any] = Scheduled() if deferred else Pending()
    details = state.state_details
    details.task_run_id, details.flow_run_id = task_run.id, task_run.flow_run_id
    if deferred:
        details.deferred = True
    return state


@contextmanager
def _contexts(flow_run_context: FlowRunContext | None, task_run_context: TaskRunContext | None) -> Iterator[None]:
    """Make these contexts the current ones; None leaves one as it is."""
    with ExitStack() as stack:
        if flow_run_context is not None:
            stack.enter_context(flow_run_context.copy())
        if task_run_context is not None:
            stack.enter_context(task_run_context.copy())
        yield


def task_input_hash(context: TaskRunContext, arguments: dict[str, Any]) -> str | None:
    """A `cache_key_fn`: one key for the same task, code and arguments; None, hence no caching, when an argument shows
    nothing of itself."""
    from .hashing import hash_objects  # only programs that cache load it

    return hash_objects(context.task.task_key, context.task.code_digest(), arguments)


@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(fn: None = None, /, **options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(fn: Callable[P, R] | None = None, /, **options: Unpack[TaskOptions]) -> Any:
    """Make a function a task: ``@task``, or ``@task(retries=3, …)`` with the options of :class:`TaskOptions`."""
    if fn is None:
        return lambda function: Task(function, **options)
    return Task(fn, **options)


__all__ = ["Task", "TaskOptions", "exponential_backoff", "task", "task_input_hash"]

# SPDX-License-Identifier: Apache-2.0
"""Futures: handles on the outcome of runs, and waiting for many of them.

One rule for every kind of future and every thread: waiting is deadline arithmetic and notification.
Nothing polls, no exception is injected into anybody's code, a timeout of 0 is a poll, None waits for
ever. A run that will never start because its upstream failed (``NotReady``) counts as done, and so does
a cancelled one. While a worker thread waits here its slot goes to another run (``_waits``).

User callbacks run once, in the thread that completes the run, or in the caller's when it is complete
already; what they raise is logged. Nothing of ours is locked meanwhile.

With durability ``disk`` a wrapped ``concurrent.futures.Future`` may be done before the disk has the end of its
run. Whoever learns of that end from the future around it, in whatever way, has waited for the disk; so a wait with a
timeout may take one sync longer, and so does a look at ``state``. A sync that fails is raised by ``result``.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar
from uuid import UUID

from ._arguments import StopVisiting, allow_failure, find, opaque, quote, visit_collection
from ._arrivals import DoneAndNotDoneFutures as DoneAndNotDoneFutures
from ._arrivals import WaitTimeout, check_timeout
from ._arrivals import as_completed as as_completed
from ._arrivals import wait as wait
from ._boundary import check_after_wait
from ._deadlocks import Job, One, blocking
from ._loggers import get_logger
from ._tagged_json import add_tag
from ._typing_only import Protocol
from ._waits import AsyncioWaits, BlockingWaits, Waits, completion_of, finish, slot_given_back
from .client.objects import FlowRun, TaskRun
from .client.orchestration import current_client
from .exceptions import MicroflowException, ObjectNotFound, UpstreamTaskError
from .states import Cancelled, Pending, State
from .task_runs import FlowRunWatch, TaskRunWatch, Watch, call_contained, end_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from concurrent.futures import Future

R = TypeVar("R")


class RunFuture(ABC, Generic[R]):
    """A handle on the outcome of a run."""

    def __init__(self, task_run_id: UUID) -> None:
        self._task_run_id = task_run_id
        # what the run ended in; a subclass may set it to be a future that is complete from the start
        self._final_state: State[R] | None = None

    @property
    def task_run_id(self) -> UUID:
        """The id of the run."""
        return self._task_run_id

    @property
    def state(self) -> State[R]:
        """The present state; a finished run's final state, with its data, also before ``wait``."""
        return self._final_state or Pending()

    @abstractmethod
    def wait(self, timeout: float | None = None) -> None:
        """Block until the run is done or `timeout` seconds have passed; never raises for either."""

    @abstractmethod
    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """Wait, then the run's result; raises what the run raised, or gives it back as a value with
        ``raise_on_failure=False``. TimeoutError when the run is not done after `timeout` seconds."""

    @abstractmethod
    def add_done_callback(self, fn: Callable[[RunFuture[R]], object]) -> None:
        """Call `fn` with this future once the run is done."""

    def _when_done(self, fn: Callable[[RunFuture[R]], object]) -> None:
        """:meth:`add_done_callback` for what looks at the outcome before it acts: the disk may not have it yet."""
        self.add_done_callback(fn)

    @property
    def _is_unsynced(self) -> bool:
        """Whether the run is done, and looking at its outcome would wait for the disk."""
        return False

    def __await__(self) -> Generator[Any, None, R]:
        """Wait on the running event loop, then the result."""
        if self._final_state is None:
            yield from completion_of(self).__await__()
        return self.result(timeout=0)


class TaskRunFuture(RunFuture[R]):
    """A handle on the outcome of a task run."""


class _DoneCallback:
    """A callback of a future, hung on the one that it wraps. One object and no closure: 100,000 may be waited for, and
    what the garbage collector has to look at is what such a wait costs."""

    __slots__ = ("_fn", "_future")

    def __init__(self, future: TaskRunFuture[Any], fn: Callable[[Any], object]) -> None:
        self._future = future
        self._fn = fn

    def __call__(self, _: object) -> None:
        # not even an interrupt may get out where a run ends: it would keep those who wait from being called, and they
        # would wait for ever (I7)
        self.call(BaseException)

    def call(self, contained: type[BaseException]) -> None:
        """Call it; what it raises is logged, if it is `contained`."""
        try:
            self._fn(self._future)
        except contained:
            get_logger("futures").exception("a done-callback of task run %s raised", self._future._task_run_id)


class WrappedFuture(TaskRunFuture[R]):
    """A future that stands for another future object."""

    def __init__(self, task_run_id: UUID, wrapped_future: Any) -> None:
        super().__init__(task_run_id)
        self._wrapped_future = wrapped_future

    @property
    def wrapped_future(self) -> Any:
        """The future object that this one stands for."""
        return self._wrapped_future

    def add_done_callback(self, fn: Callable[[RunFuture[R]], object]) -> None:
        """Call `fn` with this future once the wrapped one is done."""
        callback = _DoneCallback(self, fn)
        if self._final_state is not None:
            callback.call(Exception)
        else:
            self._wrapped_future.add_done_callback(callback)


class _Submitted(Job, Protocol):
    """What a future asks of the submitted run whose outcome it is."""

    #: of the log, up to where the disk must have it before anybody is told of the end; 0: it has it
    position: int

    @property
    def must_sync(self) -> bool:
        """Whether its end may not be on the disk yet when its future is done."""

    def sync(self) -> None:
        """Return when its end is on the disk, where durability says so."""


class ConcurrentFuture(WrappedFuture[R]):
    """A future over a ``concurrent.futures.Future``; what that holds, a state or a value, is the outcome."""

    def __init__(self, task_run_id: UUID, wrapped_future: Future[Any]) -> None:
        super().__init__(task_run_id, wrapped_future)
        #: the submitted run, if it is one of this process, for whoever is about to block
        self.job: _Submitted | None = None

    @property
    def state(self) -> State[R]:
        """The present state."""
        if self._final_state is None and self._wrapped_future.done():
            self._adopt()
        return self._final_state or Pending()

    def add_done_callback(self, fn: Callable[[RunFuture[R]], object]) -> None:
        """Call `fn` with this future once the run is done: here when it is, else in the thread that ends it."""

        def on_disk(future: RunFuture[R]) -> None:
            self._adopt()
            fn(future)

        super().add_done_callback(on_disk if self.job is not None and self.job.must_sync else fn)

    def _when_done(self, fn: Callable[[RunFuture[R]], object]) -> None:
        super().add_done_callback(fn)

    @property
    def _is_unsynced(self) -> bool:
        return self._final_state is None and self.job is not None and self.job.position > 0

    def _adopt(self) -> None:
        """Take the outcome of a run that is done, once the disk has it, where durability says so."""
        if self.job is not None and self.job.position:
            try:
                self.job.sync()
            except Exception as error:  # whatever keeps the disk from having it, as of a store of the user's
                self._wrapped_future = type(self._wrapped_future)()
                self._wrapped_future.set_exception(error)
        if self._wrapped_future.cancelled():
            self._final_state = Cancelled(message="The future was cancelled before the run started.")
        elif self._wrapped_future.exception() is None:
            outcome = self._wrapped_future.result()
            if isinstance(outcome, State):
                self._final_state = outcome

    def wait(self, timeout: float | None = None) -> None:
        """Block until the run is done or `timeout` seconds have passed; never raises for either."""
        check_after_wait(self._final_state is None and not self._wait(timeout))

    def _wait(self, timeout: float | None) -> bool:
        wrapped = self._wrapped_future
        if not wrapped.done():
            if timeout is not None and timeout <= 0:
                return False  # a poll blocks nothing and leaves no callback behind
            done = threading.Event()
            wrapped.add_done_callback(lambda _: done.set())
            with blocking(One(self)), slot_given_back():
                if not done.wait(timeout):
                    return False
        self._adopt()
        return True

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """The result of the run. A task that was interrupted raises CrashedRun, so that a ``sys.exit()`` in
        a task does not end the flow's process."""
        timed_out = self._final_state is None and not self._wait(timeout)
        check_after_wait(timed_out)
        if timed_out:
            raise TimeoutError(f"Task run {self._task_run_id} did not complete within {timeout} seconds")
        state = self._final_state
        if state is None:
            value: R = self._wrapped_future.result(timeout=0)
            return value
        return state.read_result(raise_on_failure)


class _StoredFuture(RunFuture[R]):
    """A handle on a run that any process may run. Holds nothing but the id of the run: futures of one run are equal,
    and may be pickled and passed to other runs."""

    _watch: ClassVar[type[Watch]]
    _kind: ClassVar[str]

    def _read(self) -> State[Any] | None:
        """The present state, as the run's log has it; ObjectNotFound when there is no such run."""
        raise NotImplementedError

    @property
    def state(self) -> State[R]:
        """The present state, as the run's log has it; of a run that nobody recorded, Pending."""
        if self._final_state is not None:
            return self._final_state
        try:
            return self._read() or Pending()
        except ObjectNotFound:
            return Pending()

    async def _wait(self, waits: Waits, timeout: float | None) -> None:
        if self._final_state is None:
            if self._read() is None:
                raise RuntimeError(f"{self._kind} {self._task_run_id} has no state, so it was not started yet")
            self._final_state = await end_of(self._watch, self._task_run_id, waits, timeout)
        check_after_wait(self._final_state is None)

    async def _result(self, waits: Waits, timeout: float | None, raise_on_failure: bool) -> R:
        await self._wait(waits, timeout)
        if self._final_state is None:
            raise TimeoutError(f"{self._kind} {self._task_run_id} did not complete within {timeout} seconds")
        return self._final_state.read_result(raise_on_failure)

    def wait(self, timeout: float | None = None) -> None:
        """Block until the run has ended or `timeout` seconds have passed; ObjectNotFound when there is no such run, or
        it is deleted meanwhile."""
        finish(self._wait(BlockingWaits(), timeout))

    async def wait_async(self, timeout: float | None = None) -> None:
        """:meth:`wait` on the running loop."""
        await self._wait(AsyncioWaits(), timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """Wait, then the result, as it was kept in the run's log; MissingResult when it was not. TimeoutError when
        the run has not ended after `timeout` seconds."""
        return finish(self._result(BlockingWaits(), timeout, raise_on_failure))

    async def result_async(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """:meth:`result` on the running loop."""
        return await self._result(AsyncioWaits(), timeout, raise_on_failure)

    def __await__(self) -> Generator[Any, None, R]:
        """Wait on the running event loop, then the result."""
        return self.result_async().__await__()

    def add_done_callback(self, fn: Callable[[RunFuture[R]], object]) -> None:
        """Call `fn` with this future once the run has ended, in the thread that ends it or hears of its end; here when
        it has ended already. ObjectNotFound when there is no such run; when it is deleted later, `fn` is called."""
        name = f"{self._kind.lower()} {self._task_run_id}"
        begun = False

        def call(state: State[Any] | None) -> None:
            if self._final_state is None:
                self._final_state = state
            call_contained(lambda: fn(self), name, BaseException if begun else Exception)

        if self._final_state is None:
            self._read()
            self._watch(self._task_run_id, call).begin()
        else:
            call(self._final_state)
        begun = True

    def __eq__(self, other: object) -> bool:
        same_kind = isinstance(other, _StoredFuture) and type(other) is type(self)
        return same_kind and self._task_run_id == other._task_run_id  # type: ignore[attr-defined]  # a future

    def __hash__(self) -> int:
        return hash(self._task_run_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._task_run_id,)


class DistributedFuture(_StoredFuture[R], TaskRunFuture[R]):
    """A handle on a task run that any process may run: what ``delay`` and ``apply_async`` return. One for any other
    recorded task run can be made from its id."""

    _watch = TaskRunWatch
    _kind = "Task run"

    def _read(self) -> State[Any] | None:
        return current_client().read_task_run(self._task_run_id).state


class FlowRunFuture(_StoredFuture[R]):
    """A handle on a flow run, of whatever process."""

    _watch = FlowRunWatch
    _kind = "Flow run"

    def __init__(self, flow_run_id: UUID) -> None:
        super().__init__(flow_run_id)

    @property
    def flow_run_id(self) -> UUID:
        """The id of the flow run."""
        return self._task_run_id

    def _read(self) -> State[Any] | None:
        return current_client().read_flow_run(self._task_run_id).state

    async def aresult(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """:meth:`result` on the running loop."""
        return await self.result_async(timeout, raise_on_failure)


add_tag("future", DistributedFuture, lambda future: str(future.task_run_id), lambda run: DistributedFuture(UUID(run)))
add_tag("flow_future", FlowRunFuture, lambda future: str(future.flow_run_id), lambda run: FlowRunFuture(UUID(run)))


class FutureList(list[RunFuture[R]]):
    """A list of futures, as ``map`` returns it."""

    def wait(self, timeout: float | None = None) -> None:
        """Wait for all of them, at most `timeout` seconds in all."""
        wait(self, timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[R]:
        """The results in the order of the list. The first run to fail raises at once, the others go on.

        TimeoutError when they are not all done after `timeout` seconds; a TimeoutError out of a task is
        passed on as it is."""
        check_timeout(timeout)
        deadline = time.monotonic() + timeout if timeout else None
        too_late = TimeoutError(f"Timed out waiting for all futures to complete within {timeout} seconds")
        results: dict[RunFuture[R], R] = {}
        for future in self._arriving(timeout, too_late):
            results[future] = future.result(raise_on_failure=raise_on_failure)
        if deadline is not None and time.monotonic() > deadline:
            raise too_late  # reading a result took too long
        return [results[future] for future in self]

    def _arriving(self, timeout: float | None, too_late: TimeoutError) -> Generator[RunFuture[R], None, None]:
        # apart from the loop over it: there a task's own WaitTimeout may be raised, of a wait of the task's
        try:
            yield from as_completed(self, timeout)
        except WaitTimeout:
            raise too_late from None


# ------------------------------------------------------------------------- futures inside containers


def resolve_futures_to_states(expr: Any) -> Any:
    """The same structure with each future replaced by its final state, once it has one.

    Looks into lists, tuples, sets, dicts, dataclasses and the like, not into ``quote``. Waits."""
    return _resolved(expr, lambda future: future.state)


def resolve_futures_to_results(expr: Any) -> Any:
    """The same structure with each future replaced by its result, once it has one.

    Waits; raises what the first failed run raised."""
    return _resolved(expr, lambda future: future.result())


def _resolved(expr: Any, outcome: Callable[[RunFuture[Any]], Any]) -> Any:
    futures = list(dict.fromkeys(find(expr, (RunFuture,))))
    if not futures:
        return list(expr) if type(expr) is FutureList else expr
    wait(futures)
    outcomes = {future: outcome(future) for future in futures}

    def visit(node: Any, context: dict[str, Any]) -> Any:
        if isinstance(context.get("annotation"), quote):
            raise StopVisiting
        if isinstance(node, RunFuture):
            raise StopVisiting(outcomes[node])  # a result is not ours to look into
        return list(node) if type(node) is FutureList else node

    return visit_collection(expr, visit, return_data=True, context={})


# ------------------------------------------------------------------------------- arguments of a run


async def resolve_argument(value: Any, waits: Waits) -> Any:
    """One argument as the user's function sees it: futures and states replaced by their results, also in
    what those results hold, annotations taken off. Waits for the futures.

    UpstreamTaskError when a run that the argument needs did not complete. ``allow_failure`` lets a FAILED
    one through as its exception and a NotReady one as its data, ``quote`` is left alone, of ``opaque`` only
    the content itself is resolved."""
    for future in find(value, (RunFuture,)):
        await waits.wait(future)
    return visit_collection(value, _resolve_node, return_data=True, context={}, remove_annotations=True)


def _resolve_node(node: Any, context: dict[str, Any]) -> Any:
    annotation = context.get("annotation")
    if isinstance(annotation, quote):
        raise StopVisiting
    if isinstance(node, RunFuture):
        node.wait()  # done already, unless it came out of another run's result
        node = node.state
    if isinstance(node, State):
        node = _value_of(node, allowed=isinstance(annotation, allow_failure))
    if isinstance(node, (FlowRun, TaskRun)) and not isinstance(annotation, opaque):
        raise MicroflowException(
            f"a {type(node).__name__} object cannot be an argument; pass a future, a state or the id, "
            f"or wrap it in opaque() to hand over the object itself"
        )
    return node


def _value_of(state: State[Any], *, allowed: bool) -> Any:
    if state.is_completed():
        return state.read_result()
    if allowed and state.is_failed():
        return state.read_result(raise_on_failure=False)
    if allowed and state.is_not_ready():
        return state.data
    run_id = state.state_details.task_run_id or state.state_details.flow_run_id
    raise UpstreamTaskError(f"Upstream task run '{run_id}' did not reach a 'COMPLETED' state.")


# the reference's spelling
PrefectFuture = RunFuture
PrefectTaskRunFuture = TaskRunFuture
PrefectWrappedFuture = WrappedFuture
PrefectConcurrentFuture = ConcurrentFuture
PrefectDistributedFuture = DistributedFuture
PrefectFlowRunFuture = FlowRunFuture
PrefectFutureList = FutureList

# SPDX-License-Identifier: Apache-2.0
"""Submitting: what all task runners have in common.

Submitting never blocks and never parks a thread. A run's unmet dependencies are counted when it is submitted;
each upstream that ends takes one off, and at zero the run is queued for a worker. Released runs pass through
the queue, never through recursion, so a chain of any length is fine. Which thread runs what: user functions
in worker threads (coroutines on the runner's loop thread), done-callbacks in the thread that ended the run.

With durability ``disk`` a worker thread goes on as soon as an end is written: whoever looks at it through the
future waits for the disk, so that one sync serves all that ended meanwhile. Hooks, commits and rollbacks act
on the end: it is on the disk before them. An end that nobody looks at is there with the next sync, at the
latest when its flow run is let go of.

Leaving a runner cancels what has not started (recorded as CANCELLED) and joins what runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import ContextVar, copy_context
from enum import Enum
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from ._arguments import find, read_wait_for
from ._loggers import get_logger
from ._pool import LoopThread, NoThread, Pool, PoolSlot
from ._waits import SLOT, BlockingWaits, StopSignal, finish, slot_given_back
from .calls import Call, new_call, upstreams
from .exceptions import LogError, Pause, StorageError
from .futures import ConcurrentFuture, FutureList, RunFuture, resolve_argument
from .states import Cancelled, Crashed, Pending, State, exception_to_crashed_state
from .task_engine import run_call

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from concurrent.futures import Future
    from types import TracebackType
    from uuid import UUID

    from ._deadlocks import Waiting
    from ._inline_pool import InlinePool
    from .client.objects import TaskRunInput
    from .tasks import Task

F = TypeVar("F", bound=RunFuture[Any])
Self = TypeVar("Self", bound="TaskRunner[Any]")
PooledSelf = TypeVar("PooledSelf", bound="PooledTaskRunner")


class TaskRunner(ABC, Generic[F]):
    """Runs tasks that are submitted to it, between ``with`` and its end.

    A flow keeps a runner as configuration; each attempt of a flow run enters a duplicate of it."""

    #: what runs the tasks that a task submits while it runs in another process
    nested_runner: ClassVar[type[TaskRunner[Any]]]

    def __init__(self) -> None:
        self._started = False

    @property
    def name(self) -> str:
        """The kind of the runner in lower case, for example ``threadpool``."""
        return type(self).__name__.lower().replace("taskrunner", "")

    @abstractmethod
    def duplicate(self: Self) -> Self:
        """A runner with the same configuration that is not started."""

    @abstractmethod
    def submit(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[RunFuture[Any]] | None = None,
        dependencies: dict[str, set[TaskRunInput]] | None = None,
    ) -> F:
        """Start a run of `task` once the futures in `parameters` and `wait_for` are done; returns its future."""

    def map(
        self, task: Task[Any, Any], parameters: dict[str, Any], wait_for: Iterable[RunFuture[Any]] | None = None
    ) -> FutureList[Any]:
        """Submit one run for each element of the iterables in `parameters`.

        Strings, bytes and ``unmapped`` values are given to every run as they are. A parameter that is a future
        itself is waited for here. MappingMissingIterable without an iterable, MappingLengthMismatch when their
        lengths differ, both before any run is made."""
        self._check_started()
        wait_for = read_wait_for(wait_for)
        upstream: dict[str, set[TaskRunInput]] = {}
        resolved = {}
        for name, value in parameters.items():
            if isinstance(value, (RunFuture, State)):
                upstream[name] = set(upstreams(value))
                value = finish(resolve_argument(value, BlockingWaits()))
            resolved[name] = value
        return FutureList(self._submit_all(task, task.parameters.children(resolved), wait_for, upstream))

    def _submit_all(
        self,
        task: Task[Any, Any],
        children: list[dict[str, Any]],
        wait_for: Iterable[RunFuture[Any]] | None,
        dependencies: dict[str, set[TaskRunInput]],
    ) -> list[F]:
        return [self.submit(task, child, wait_for, dependencies) for child in children]

    def is_idle(self) -> bool:
        """Whether leaving the runner now would wait for nothing."""
        return False

    def cancel_on_this_loop(self) -> Collection[Any]:
        """Cancel the coroutine tasks that run on the caller's own loop, where there are no threads; gives what
        to wait for until they have ended. Called by the engine of a coroutine flow before it leaves the runner."""
        return ()

    def _check_started(self) -> None:
        if not self._started:
            raise RuntimeError("Task runner is not started")

    def __enter__(self: Self) -> Self:
        if self._started:
            raise RuntimeError("This task runner is already started")
        self._started = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started = False


#: what runs the tasks that a run outside of all flows submits: set around deferred runs, by their worker
RUNNER_OUTSIDE_FLOWS: ContextVar[TaskRunner[Any] | None] = ContextVar("microflow_runner_outside_flows", default=None)


class Cancellation(str, Enum):
    """What ``cancel`` came to."""

    #: the run had not started and never will; it is CANCELLED
    NOT_STARTED = "not started"
    #: the process that it ran in was killed; it is CANCELLED
    KILLED = "killed"
    #: it runs, and nothing can stop it there; its outcome will be what it comes to
    UNSTOPPABLE = "unstoppable"
    #: it had ended
    DONE = "done"


@cache
def _future_class() -> type[Future[Any]]:
    # loaded with the first submission, since it loads ``logging`` as well: a flow that only calls needs neither
    from concurrent.futures import Future

    return Future


class Submission:
    """A run that was submitted: a job of the pool."""

    __slots__ = (
        "call",
        "cancel_event",
        "context",
        "future",
        "isasync",
        "loop_thread",
        "parameters",
        "position",
        "runner",
        "task",
        "unmet",
        "upstreams",
        "wait_for",
        "waiting",
    )

    def __init__(
        self, runner: PooledTaskRunner, task: Task[Any, Any], call: Call, parameters: dict[str, Any], wait_for: Any
    ) -> None:
        self.runner = runner
        self.task = task
        self.call = call
        self.parameters = parameters
        self.wait_for = wait_for
        self.future: Future[Any] = _future_class()()
        self.isasync = task.isasync
        self.context = copy_context()
        self.cancel_event = runner.cancel_event
        call.on_early_end = self._ended_early
        # a worker does not wait for the disk, but for hooks, which act on the end, and for what is not to be repeated
        call.leaves_sync = call.recorder.must_sync and not (task.isasync or task.hooks or task.at_most_once)
        #: of the log, up to where the disk must have it before anybody is told of the end; 0: it has it
        self.position = 0
        self.loop_thread: LoopThread | None = None
        self.unmet = 1
        self.upstreams: Collection[RunFuture[Any]] = ()
        self.waiting: Waiting | None = None

    def has_ended(self) -> bool:
        """Whether its future is done."""
        return self.future.done()

    @property
    def must_sync(self) -> bool:
        """Whether its end may not be on the disk yet when its future is done."""
        return self.call.recorder.must_sync

    def sync(self) -> None:
        """Return when its end is on the disk, where durability says so."""
        context = self.call.flow_context
        if self.position and context is not None:
            context.live.sync(self.position)
        self.position = 0

    def run(self, slot: PoolSlot) -> None:
        """Run a blocking task in this worker thread."""
        SLOT.set(slot)
        if not self.future.set_running_or_notify_cancel():
            self.record_cancelled()
            return
        try:
            outcome = self.execute()
        except BaseException as error:  # a worker outlives whatever its job raises; it is the job's outcome
            self._failed(error)
        else:
            self._ended(outcome)

    def execute(self) -> State[Any]:
        """Run the task in this thread; its final state."""
        state: State[Any] = run_call(self.call, self.task, self.parameters, self.wait_for, self.cancel_event)
        return state

    async def run_async(self, slot: PoolSlot) -> None:
        """Run a coroutine task on the loop of this thread."""
        SLOT.set(slot)
        if not self.future.set_running_or_notify_cancel():
            self.record_cancelled()
            return
        try:
            outcome = await run_call(self.call, self.task, self.parameters, self.wait_for, self.cancel_event)
        except BaseException as error:  # the loop outlives whatever its task raises; it is the task's outcome
            self._failed(error)
        else:
            self._ended(outcome)

    def _ended(self, state: State[Any]) -> None:
        self.parameters, self.wait_for = {}, None  # the future lives on, what it was made from need not
        if not self.future.done():
            if self.call.leaves_sync:  # else its engine has waited for the disk
                self._leave_sync()
            self.future.set_result(state)

    def _leave_sync(self) -> None:
        """Have whoever looks at the end wait for the disk."""
        context = self.call.flow_context
        if self.must_sync and context is not None:
            self.position = context.live.run.position

    def _ended_early(self, state: State[Any]) -> None:
        """The run timed out, and its function cannot be stopped: nobody need wait for it. Called by the timer."""
        self.future.set_result(state)

    def _failed(self, error: BaseException) -> None:
        """The engine itself raised: an interrupt, recorded as a crash, or an error before the run could start."""
        state = self.call.task_run.state
        if self.future.done():
            return
        stopped = state is not None and (state.is_crashed() or state.is_cancelled())
        if isinstance(error, Pause) or (isinstance(error, Exception) and not stopped):
            self.future.set_exception(error)  # a Pause is raised again in whoever waits: their flow run is suspended
        else:
            self._leave_sync()
            self.future.set_result(state if stopped else exception_to_crashed_state(error))

    def record_cancelled(self) -> None:
        """Record that the run will not start, and complete its future. One of a suspended flow run will start when that
        is resumed: nothing is recorded, and who waits for it meets the suspension."""
        if self.call.task_run.state is not None and self.call.task_run.state.is_final():
            return  # cancelled by itself before, and recorded then
        context = self.call.flow_context
        flow_state = None if context is None else context.flow_run.state
        if flow_state is not None and flow_state.is_left():
            if not self.future.cancelled():
                self.future.set_exception(Pause("the flow run is suspended", state=flow_state))
            return
        state: State[Any] = Cancelled(message="The run was cancelled before it started.")
        self._record(state)
        self._leave_sync()
        if not self.future.cancelled():
            self.future.set_result(state)

    def leave_behind(self) -> None:
        """The program was interrupted while the function runs, which cannot be stopped: record the run as crashed. What
        the function still does is recorded nowhere."""
        from concurrent.futures import InvalidStateError  # loaded already

        name = self.call.task_run.name
        get_logger("task_runners").warning("task run %r was still running when its runner was interrupted", name)
        state: State[Any] = Crashed(message="The program was interrupted, and did not wait for the function to return.")
        self._record(state)
        self._leave_sync()
        try:
            self._ended(state)
        except InvalidStateError:  # it has ended at this moment
            pass

    def _record(self, state: State[Any]) -> None:
        state.state_details.task_run_id = self.call.task_run.id
        state.state_details.flow_run_id = self.call.task_run.flow_run_id
        try:
            self.call.recorder.propose_task(self.call.task_run, state, force=True)
        except (LogError, StorageError):  # the flow run has the same trouble and reports it
            pass


#: how long a runner that is left by an interrupt waits for what cannot be interrupted, in seconds
INTERRUPT_PATIENCE = 0.5


class PooledTaskRunner(TaskRunner[ConcurrentFuture[Any]]):
    """What runners have in common that let at most `max_workers` runs be active at a time."""

    def __init__(self, max_workers: int) -> None:
        super().__init__()
        if not isinstance(max_workers, int) or max_workers < 1:  # type: ignore[redundant-expr]  # untyped callers
            raise ValueError(f"max_workers must be a whole number of at least 1, got {max_workers!r}")
        self._max_workers = max_workers
        self._pool: Pool | InlinePool | None = None
        self._waiting: set[Submission] = set()
        # guards ``_waiting`` and the counts of unmet dependencies; no callback is called while it is held
        self._lock = Lock()
        self.cancel_event = StopSignal()

    def _configuration(self) -> tuple[Any, ...]:
        """What two runners must have in common to be equal."""
        return (type(self).__name__, self._max_workers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PooledTaskRunner) and self._configuration() == other._configuration()

    def __hash__(self) -> int:
        return hash(self._configuration())

    def __repr__(self) -> str:
        return f"{type(self).__name__}(max_workers={self._max_workers})"

    def __getstate__(self) -> dict[str, Any]:
        """The configuration: what makes a runner run is made anew by who restores it."""
        if self._started:
            raise TypeError(f"{self!r} is started and cannot be pickled; pickle its duplicate()")
        made = object.__new__(type(self))
        PooledTaskRunner.__init__(made, self._max_workers)
        return {name: value for name, value in self.__dict__.items() if name not in made.__dict__} | {
            "_max_workers": self._max_workers
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        PooledTaskRunner.__init__(self, state["_max_workers"])
        self.__dict__.update(state)

    def _submission(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Any,
        dependencies: dict[str, set[TaskRunInput]],
    ) -> Submission:
        """A run to be submitted. What makes that impossible is raised here, before anything is recorded."""
        return Submission(self, task, new_call(task, parameters, wait_for, dependencies), parameters, wait_for)

    def submit(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[RunFuture[Any]] | None = None,
        dependencies: dict[str, set[TaskRunInput]] | None = None,
    ) -> ConcurrentFuture[Any]:
        """Start a run of `task` once the futures in `parameters` and `wait_for`, read now, are done."""
        self._check_started()
        return self._submit_all(task, [parameters], wait_for, dependencies or {})[0]

    def _submit_all(
        self,
        task: Task[Any, Any],
        children: list[dict[str, Any]],
        wait_for: Iterable[RunFuture[Any]] | None,
        dependencies: dict[str, set[TaskRunInput]],
    ) -> list[ConcurrentFuture[Any]]:
        if self._pool is None:
            raise RuntimeError("Task runner is not started")
        wait_for = read_wait_for(wait_for)
        submissions = [self._submission(task, child, wait_for, dependencies) for child in children]
        new = [each.call for each in submissions if not each.call.task_run.recorded]
        if new:
            # Pending is recorded here, in the submitting thread, for all of a map at once: from now on the run
            # can be found, and its future may be waited for
            new[0].recorder.create_tasks([(call.task_run, _pending(call), task.source_digest) for call in new])
        return [self._start(submission) for submission in submissions]

    def _start(self, submission: Submission) -> ConcurrentFuture[Any]:
        call = submission.call
        future: ConcurrentFuture[Any] = ConcurrentFuture(call.task_run.id, submission.future)
        if call.ended is not None and not call.joins_again(submission.task):
            submission.future.set_result(call.ended)
            return future
        future.job = submission
        with self._lock:
            self._waiting.add(submission)
        futures = find([*submission.parameters.values(), submission.wait_for], (RunFuture,))
        submission.upstreams = tuple(dict.fromkeys(futures))
        for upstream in submission.upstreams:
            with self._lock:
                submission.unmet += 1
            upstream._when_done(lambda _: self._met(submission))
        self._met(submission)
        return future

    def _met(self, submission: Submission) -> None:
        """One dependency fewer; at none the run is queued. Called by whatever thread ended the upstream run."""
        with self._lock:
            submission.unmet -= 1
            if submission.unmet or submission not in self._waiting:
                return
            self._waiting.discard(submission)
        submission.upstreams = ()
        pool = self._pool
        if pool is None or not self._put(pool, submission):
            submission.record_cancelled()

    def _put(self, pool: Pool | InlinePool, submission: Submission) -> bool:
        try:
            return pool.put(submission)
        except NoThread:
            if not pool.is_unused():
                raise
            from . import _inline_pool  # for places without threads: loaded where one was refused

            self._pool = _inline_pool.InlinePool()
            return self._pool.put(submission)

    def is_idle(self) -> bool:
        """Whether no thread was started yet and nothing waits for one."""
        return not self._waiting and (self._pool is None or self._pool.is_unused())

    def cancel_on_this_loop(self) -> Collection[Any]:
        """The same; there are some only where no thread could be started."""
        return () if self._pool is None or isinstance(self._pool, Pool) else self._pool.cancel()

    def cancel(self, future: ConcurrentFuture[Any]) -> Cancellation:
        """Cancel one run that was submitted here, and say what came of it: only what is known, whatever runs it."""
        if future.wrapped_future.done():
            return Cancellation.DONE
        if future.wrapped_future.cancel():
            if isinstance(future.job, Submission):
                future.job.record_cancelled()
            return Cancellation.NOT_STARTED
        if self._stop(future.task_run_id):
            return Cancellation.KILLED
        return Cancellation.DONE if future.wrapped_future.done() else Cancellation.UNSTOPPABLE

    def _stop(self, run_id: UUID) -> bool:
        """Stop a run that has started; whether that was possible."""
        return False

    def cancel_all(self) -> None:
        """Cancel what has not started, tell what runs (its ``cancel_event``), and wait for that to end. A retry that
        waits for its time does not wait any longer."""
        self._end(None)

    def _end(self, patience: float | None) -> None:
        """Leave the pool. What runs is waited for; with `patience`, coroutines are cancelled and threads are waited for
        so many seconds: then what runs there is recorded as crashed and left behind."""
        self.cancel_event.set()
        with self._lock:  # both at once: what is released from now on must not be recorded by recursion
            pool, self._pool = self._pool, None
            waiting, self._waiting = list(self._waiting), set()
        if pool is None:
            return
        for submission in (*pool.close(), *waiting):
            submission.record_cancelled()
        if patience is not None:
            pool.interrupt_coroutines()
        with slot_given_back():
            all_ended = pool.join(patience)
        if not all_ended:
            for submission in list(pool.running):
                submission.leave_behind()

    def __enter__(self: PooledSelf) -> PooledSelf:
        super().__enter__()
        self.cancel_event = StopSignal()
        self._pool = Pool(self._max_workers, f"microflow-{self.name}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, Exception):
            self.cancel_all()
        else:
            self._end(INTERRUPT_PATIENCE)
        super().__exit__(kind, error, trace)


def _pending(call: Call) -> State[Any]:
    state: State[Any] = Pending()
    state.state_details.task_run_id = call.task_run.id
    state.state_details.flow_run_id = call.task_run.flow_run_id
    return state

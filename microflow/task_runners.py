# SPDX-License-Identifier: Apache-2.0
"""Task runners: where submitted runs execute.

What submitting does, and when a run takes a worker, is said once in ``_submitting``. The runners here differ in what a
worker is: a thread of this process, a process of the runner's own, whatever an executor has.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

from ._loggers import get_logger
from ._submitting import Cancellation as Cancellation
from ._submitting import PooledTaskRunner, Submission
from ._submitting import TaskRunner as TaskRunner
from ._waits import finish
from .calls import new_call
from .futures import DistributedFuture, RunFuture
from .settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor
    from types import TracebackType
    from uuid import UUID

    from ._dispatch import Carrier, DispatchingTaskRunEngine, MessageProcessors, PackedCall, ProcessCarrier
    from ._executors import ExecutorCarrier
    from .client.objects import TaskRunInput
    from .futures import ConcurrentFuture
    from .states import State
    from .tasks import Task

ProcessSelf = TypeVar("ProcessSelf", bound="ProcessPoolTaskRunner")


class ThreadPoolTaskRunner(PooledTaskRunner):
    """Runs tasks in threads of this process, at most `max_workers` at a time.

    The default is the setting ``thread_pool_max_workers``. A run that waits for other runs does not count:
    nested submits complete with any `max_workers`, 1 included. Coroutine tasks share one event loop in a
    thread of its own."""

    def __init__(self, max_workers: int | None = None) -> None:
        super().__init__(current_settings().thread_pool_max_workers if max_workers is None else max_workers)

    def _configuration(self) -> tuple[Any, ...]:
        return ("threads", self._max_workers)

    def duplicate(self) -> ThreadPoolTaskRunner:
        """A runner with the same number of workers that is not started."""
        return type(self)(max_workers=self._max_workers)


class NestedTaskRunner(ThreadPoolTaskRunner):
    """Runs what a task submits while it runs in a worker process: in threads there, until all of it has ended."""

    def __init__(self, max_workers: int | None = None) -> None:
        super().__init__(max_workers)
        self._submitted: list[ConcurrentFuture[Any]] = []

    def _start(self, submission: Submission) -> ConcurrentFuture[Any]:
        future = super()._start(submission)
        self._submitted.append(future)
        return future

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._submitted:  # tasks may submit more until they end
            self._submitted.pop().wait()
        super().__exit__(kind, error, trace)


TaskRunner.nested_runner = NestedTaskRunner


class _DispatchedSubmission(Submission):
    """A run whose attempts run in another process; a thread here waits for each of them."""

    __slots__ = ("packed",)
    runner: DispatchingTaskRunner

    def __init__(self, runner: DispatchingTaskRunner, packed: PackedCall, *args: Any) -> None:
        super().__init__(runner, *args)
        self.packed: PackedCall | None = packed
        self.isasync = False

    def execute(self) -> State[Any]:
        """Run the task elsewhere; its final state."""
        from ._dispatch import DispatchingTaskRunEngine  # loads what other processes need: only for runners that do

        assert self.packed is not None, "a submission is executed once"
        engine: DispatchingTaskRunEngine[Any] = DispatchingTaskRunEngine(
            self.task,
            self.parameters,
            self.call,
            self.packed,
            self.runner.carrier(),
            wait_for=self.wait_for,
            context={"cancel_event": self.cancel_event},
            on_log=self.runner.on_log,
        )
        self.packed = None  # the future lives on, the arguments need not
        finish(engine._run())
        return engine.state


class DispatchingTaskRunner(PooledTaskRunner):
    """What runners have in common that run tasks in other processes.

    A run has a thread here only while an attempt of it is under way. The engine of each run is in this process
    and appends its states; what crosses is bytes (see ``_envelope``). The task and its arguments must be such
    that another process can have them: NotTransferable, raised by ``submit``, names what is not, and the cure.
    Tasks that a task calls or submits run in its process; they are recorded when its attempt has ended."""

    @abstractmethod
    def carrier(self) -> Carrier:
        """What brings envelopes to workers; made when it is first needed."""

    def on_log(self, record: dict[str, Any]) -> None:
        """Log here what a task logged elsewhere."""
        from ._captured_logs import log_again  # loaded by now

        log_again(record)

    def _submission(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Any,
        dependencies: dict[str, set[TaskRunInput]],
    ) -> Submission:
        from ._dispatch import PackedCall  # loads what other processes need: only for runners that do

        packed = PackedCall(task, parameters)
        call = new_call(task, parameters, wait_for, dependencies)
        return _DispatchedSubmission(self, packed, task, call, parameters, wait_for)


class ProcessPoolTaskRunner(DispatchingTaskRunner):
    """Runs tasks in processes of its own, at most `max_workers` at a time; needs no /dev/shm.

    The default is the setting ``process_pool_max_workers``, else the number of processors. Workers are started
    when they are first needed and end with the runner, or at once when this process is killed. A worker that dies
    takes its task with it, as CRASHED, and no other; one whose task exceeds ``timeout_seconds`` is killed.
    `initializer` is called with `initargs` in each worker before its first task; both must be picklable.
    `start_method` is "forkserver" (the default where it exists), "spawn" or "fork"; a worker is replaced after
    `max_tasks_per_child` attempts."""

    def __init__(
        self,
        max_workers: int | None = None,
        subprocess_message_processor_factories: Iterable[Callable[[], Any]] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        start_method: str | None = None,
        max_tasks_per_child: int | None = None,
    ) -> None:
        super().__init__(current_settings().process_pool_max_workers if max_workers is None else max_workers)
        if start_method not in (None, "forkserver", "spawn", "fork"):
            raise ValueError(f"start_method must be 'forkserver', 'spawn' or 'fork', got {start_method!r}")
        if max_tasks_per_child is not None and max_tasks_per_child < 1:
            raise ValueError(f"max_tasks_per_child must be at least 1, got {max_tasks_per_child!r}")
        self._factories = tuple(subprocess_message_processor_factories or ())
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._start_method = start_method
        self._max_tasks_per_child = max_tasks_per_child
        self._carrier: ProcessCarrier | None = None
        self._messages: MessageProcessors | None = None

    def _configuration(self) -> tuple[Any, ...]:
        return ("processes", self._max_workers)

    def duplicate(self: ProcessSelf) -> ProcessSelf:
        """A runner with the same configuration that is not started; also of a subclass with another ``__init__``."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        PooledTaskRunner.__init__(twin, self._max_workers)
        twin._carrier = twin._messages = None
        return twin

    @property
    def subprocess_message_processor_factories(self) -> tuple[Callable[[], Any], ...]:
        """Make the functions that see each ``("log", record)`` that a worker sends, and may change or drop it."""
        return self._factories

    @subprocess_message_processor_factories.setter
    def subprocess_message_processor_factories(self, factories: Iterable[Callable[[], Any]] | None) -> None:
        self.set_subprocess_message_processor_factories(factories)

    def set_subprocess_message_processor_factories(self, factories: Iterable[Callable[[], Any]] | None) -> None:
        """Set the factories; RuntimeError on a runner that is started."""
        if self._started:
            raise RuntimeError("Cannot configure subprocess message processor factories while task runner is started")
        self._factories = tuple(factories or ())

    def carrier(self) -> ProcessCarrier:
        """The worker processes."""
        if self._carrier is None:
            from ._dispatch import ProcessCarrier  # loads sockets and subprocess: only for runners that need them

            # pickles the initializer, the user's code: not under the lock (I9); one that comes late is not used
            carrier = ProcessCarrier(self._start_method, self._initializer, self._initargs, self._max_tasks_per_child)
            with self._lock:
                if self._carrier is None:
                    self._carrier = carrier
        return self._carrier

    def on_log(self, record: dict[str, Any]) -> None:
        """Log here what a task logged in its process, as the message processors leave it."""
        if self._messages is not None:
            self._messages.deliver("log", record)

    def __enter__(self: ProcessSelf) -> ProcessSelf:
        from ._dispatch import MessageProcessors  # loads sockets and subprocess: only for runners that need them

        super().__enter__()
        self._messages = MessageProcessors(self._factories)
        return self

    def _stop(self, run_id: UUID) -> bool:
        carrier = self._carrier
        return carrier is not None and carrier.kill(run_id)

    def _end(self, patience: float | None) -> None:
        if patience is not None and self._carrier is not None:
            self._carrier.kill_all("its flow run was interrupted")
        super()._end(patience)
        with self._lock:
            carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.close()


class ExecutorTaskRunner(DispatchingTaskRunner):
    """Runs tasks on any ``concurrent.futures.Executor``, also one whose workers share no disk with this process.

    `executor` is an executor, which its owner shuts down, or a function without parameters that makes one when
    it is first needed; that one is made anew when it breaks, and shut down with the runner. At most
    `max_workers` attempts are with the executor at a time: give the number of its workers where it does not tell
    it (a pool of the standard library and loky do), since time in a queue of its own counts for ``timeout_seconds``.
    An attempt there cannot be stopped: a timeout gives it up, and it fills its worker until it ends. What needs one
    waits meanwhile, without its own ``timeout_seconds`` running. An executor that a function made is replaced when
    nothing but such attempts fills it; in one that is given they are waited for, for ever if they never end. Leaving
    the runner kills the process of such an attempt, if a function made the pool; Ctrl-C kills those of all. An executor
    that loses a worker loses what it says that it lost, as CRASHED."""

    def __init__(self, executor: Executor | Callable[[], Executor], max_workers: int | None = None) -> None:
        given = hasattr(executor, "submit") and not isinstance(executor, type)  # a class of executors makes one
        if not given and not callable(executor):
            raise TypeError(f"executor must be an Executor or a function that makes one, got {executor!r}")
        if max_workers is None:
            from ._executors import size_of  # loads what other processes need: only for runners that do

            max_workers = size_of(executor) or current_settings().thread_pool_max_workers
        super().__init__(max_workers)
        self._source: Any = executor
        self._is_given = given
        self._carrier: ExecutorCarrier | None = None

    def _configuration(self) -> tuple[Any, ...]:
        return ("executor", id(self._source), self._max_workers)

    def duplicate(self) -> ExecutorTaskRunner:
        """A runner on the same executor, or with the same factory, that is not started."""
        return type(self)(self._source, self._max_workers)

    def carrier(self) -> ExecutorCarrier:
        """The executor."""
        from ._executors import ExecutorCarrier  # loads what other processes need: only for runners that do

        with self._lock:
            if self._carrier is None:
                executor, factory = (self._source, None) if self._is_given else (None, self._source)
                self._carrier = ExecutorCarrier(executor, factory)
            return self._carrier

    def _submission(self, *args: Any) -> Submission:
        submission = super()._submission(*args)
        if self._is_given:
            self.carrier().prepare()
        return submission

    def _end(self, patience: float | None) -> None:
        if patience is not None and self._carrier is not None:
            self._carrier.interrupt()
        super()._end(patience)
        with self._lock:
            carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.close(wait=patience is None)


class WorkerTaskRunner(TaskRunner[DistributedFuture[Any]]):
    """Defers what is submitted: worker processes that share the home run it (``python -m microflow serve``).

    Arguments are carried to the worker, so futures among them have to be of deferred runs. Leaving the runner neither
    waits for anything nor cancels anything."""

    def duplicate(self) -> WorkerTaskRunner:
        """Another one that is not started."""
        return type(self)()

    def submit(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[RunFuture[Any]] | None = None,
        dependencies: dict[str, set[TaskRunInput]] | None = None,
    ) -> DistributedFuture[Any]:
        """Record a run of `task` for a worker; SerializationError, before that, for what cannot be carried."""
        self._check_started()
        future = task.defer(parameters, wait_for, dependencies)
        get_logger("task_runners").info("task run %s of task %r waits for a worker", future.task_run_id, task.name)
        return future

    def is_idle(self) -> bool:
        """Leaving it waits for nothing."""
        return True


PrefectTaskRunner = WorkerTaskRunner  # the reference's spelling
ConcurrentTaskRunner = ThreadPoolTaskRunner  # the reference's other name

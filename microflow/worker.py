# SPDX-License-Identifier: Apache-2.0
"""Workers: processes that take queued runs and run them.

Goal: each queued run is run by one process at a time, and at least once, whatever happens to the processes.

The rule: an entry of the queue says only "look at this run". Who runs it is decided by the claim in its log, which one
process can append; all others find another owner there and look elsewhere. The owner's lock ends with its process, so
a run whose worker died is taken again by whoever looks next: up to three times, then it is recorded CRASHED. The entry
is removed after the run's end was recorded, by whoever notices.

    queue ──▶ Candidates: is it ours, free, due?  ──▶ claim ──▶ Pool: a slot, a thread or a loop ──▶ the engine
      ▲                                                                                              │
      └── the entry is removed ◀── the run is let go ◀── its end is in its log ◀─────────────────────┘

A run is claimed only when a slot is free for it: what is more than `limit` stays in the queue, for any worker. A run
that waits for another one gives its slot back, as everywhere. SIGTERM and the first Ctrl-C end the taking; what
runs is finished, the rest is left.

Which thread runs what: the worker's own thread looks and claims; blocking tasks and flows run in threads of the pool,
coroutines on its loop. What kinds of runs can be served is said by ``_serving``. A worker that serves flows also looks
through the home, now and then, for runs that the queue does not name (``_sweep``).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from ._candidates import Candidates
from ._pool import LoopThread, Pool, PoolSlot
from ._serving import AllOf, DeferredTasks, GivenUp, ServedFlows, Serving, ToBeDeployed, Work, failure
from ._sweep import Sweep
from ._waits import SLOT, AsyncioWaits, choose_async, now_us, to_datetime
from .client.live import Leaving
from .client.orchestration import current_client, host_name
from .exceptions import Abort, LogError, MicroflowException, StorageError
from .logging import get_logger
from .states import Crashed, State
from .task_runs import has_ended

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime
    from types import FrameType, TracebackType
    from typing import TypeAlias
    from uuid import UUID

    from typing_extensions import Self

    from .client.live import LiveRun
    from .client.objects import TaskRun
    from .client.orchestration import SyncClient
    from .flows import Flow
    from .tasks import Task

    #: what can be served
    Served: TypeAlias = Task[Any, Any] | Flow[Any, Any] | ToBeDeployed

#: how often a run is taken over from a process that died with it
MOST_TAKEOVERS = 3
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.010


class _Job:
    """A claimed run as a job of the pool."""

    def __init__(self, worker: Worker, work: Work, live: LiveRun) -> None:
        self.work = work
        self.isasync = work.isasync
        self.context = copy_context()
        self.loop_thread: LoopThread | None = None
        self.upstreams: tuple[Any, ...] = ()
        self.waiting: Any = None
        self._worker = worker
        self._live = live
        self._ended = False

    def has_ended(self) -> bool:
        """Whether the run was let go."""
        return self._ended

    def run(self, slot: PoolSlot) -> None:
        """Run it in this thread."""
        SLOT.set(slot)
        try:
            self.let_go(self.work.run())
        except BaseException as error:  # a worker outlives whatever a run raises
            self._fail(error)

    async def run_async(self, slot: PoolSlot) -> None:
        """Run it on the loop of this thread."""
        SLOT.set(slot)
        try:
            self.let_go(await self.work.run_async())
        except BaseException as error:  # the loop outlives whatever a run raises
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, Abort):  # the worker stops, or somebody refused the run: it stays as it is
            self.let_go(None)
            return
        try:
            if isinstance(error, (LogError, StorageError)):
                raise error
            state = self.work.end(failure(error))
        except (LogError, StorageError) as refused:  # the log does not take our word: somebody else is to look at it
            get_logger("worker").error("run %s is left to others: %s", self._live.run_id, refused)
            self._worker.client.abandon(self._live)
            self._finish()
        else:
            self.let_go(state)

    def let_go(self, state: State[Any] | None) -> None:
        """Release the run, then remove its entry if it has ended. Dying in between, the entry leads to an ended run,
        and whoever looks at it removes it."""
        client = self._worker.client
        try:
            client.let_go(self._live)
            if has_ended(state):
                client.store.queue.take(self._live.run_id)
        except (LogError, StorageError) as problem:
            get_logger("worker").error("run %s could not be let go: %s", self._live.run_id, problem)
        # suspended: it may have been resumed by now
        self._finish(again=state is not None and (state.is_paused() or state.is_resuming()))

    def _finish(self, *, again: bool = False) -> None:
        self._ended = True
        self._worker._finished(self, self._live, again)


class Worker:
    """Runs deferred runs of tasks, and runs of flows that are scheduled, resumed, or were left behind by their process,
    at most `limit` at a time (None: any number).

    ``start`` serves in the calling thread until ``stop`` is called or the time is up; ``with`` or ``async with`` serves
    in a thread of its own for the block."""

    def __init__(self, *served: Served, limit: int | None = 10) -> None:
        self.tasks, self.flows, self._to_deploy = _sorted(served, limit)
        self.limit = limit
        self.client_id = f"{host_name()}-{os.getpid()}"
        self.client: SyncClient = current_client()
        self.started_at: datetime | None = None
        #: said to stop: nothing more is taken. An attribute, and no Event: it is set in signal handlers
        self.stopping = False
        self.in_flight_task_runs: dict[str, dict[UUID, datetime]] = {task.task_key: {} for task in self.tasks}
        self.finished_task_runs: dict[str, int] = {task.task_key: 0 for task in self.tasks}
        self._serving: Serving = AllOf(DeferredTasks(self.tasks), ServedFlows(self.flows))
        self._candidates: Candidates | None = None
        self._leaving = Leaving()
        self._pool: Pool | None = None
        self._ring = threading.Event()
        self._thread: threading.Thread | None = None
        # guards the two tables of runs
        self._lock = threading.Lock()

    @property
    def started(self) -> bool:
        """Whether the worker takes runs, or finishes those that it took."""
        return self._pool is not None

    @property
    def current_tasks(self) -> int | None:
        """How many slots are in use; None without a limit."""
        return None if self.limit is None else self._pool.active if self._pool is not None else 0

    @property
    def available_tasks(self) -> int | None:
        """How many slots are free; None without a limit."""
        used = self.current_tasks
        return None if self.limit is None or used is None else max(0, self.limit - used)

    def status(self) -> dict[str, Any]:
        """What the worker does now, as plain JSON."""
        with self._lock:
            in_flight = {
                key: {str(run_id): began.isoformat() for run_id, began in runs.items()}
                for key, runs in self.in_flight_task_runs.items()
            }
            finished = dict(self.finished_task_runs)
        return {
            "client_id": self.client_id,
            "started_at": self.started_at and self.started_at.isoformat(),
            "stopping": self.stopping,
            "limit": self.limit,
            "current": self.current_tasks,
            "available": self.available_tasks,
            "tasks": sorted(task.task_key for task in self.tasks),
            "flows": sorted(flow.name for flow in self.flows),
            "finished": finished,
            "in_flight": in_flight,
        }

    # ----------------------------------------------------------------------------------------------- serving

    def start(self, timeout: float | None = None) -> None:
        """Serve in this thread until ``stop`` is called, or for `timeout` seconds; what runs then is finished."""
        if self._pool is not None:
            raise RuntimeError("This worker is already started")
        deadline = None if timeout is None else time.monotonic() + timeout
        self._pool = pool = Pool(self.limit or sys.maxsize, "microflow-worker")
        self.started_at, self.stopping, self._leaving = to_datetime(now_us()), False, Leaving()
        candidates = self._candidates = Candidates(self.client, self._serving.serves)
        sweep = Sweep(self.client, self._serving.serves) if self.flows else None
        patience: float | None = None
        try:
            for each in self._to_deploy:
                each.record(self.client)
            pause = SHORTEST_PAUSE
            while not self.stopping and (deadline is None or time.monotonic() < deadline):
                try:
                    if self._take_what_fits(candidates, pool) or (sweep is not None and sweep.step()):
                        pause = SHORTEST_PAUSE
                except StorageError as problem:  # it may be over soon: a full disk, a folder that cannot be reached
                    get_logger("worker").error("the queue cannot be read: %s", problem)
                    time.sleep(1.0)
                self._rest(pause, candidates, deadline)
                pause = min(pause * 1.5, LONGEST_PAUSE)
        except BaseException:  # interrupted: what runs cannot be waited for as long as it likes
            patience = 0.5
            raise
        finally:
            candidates.close()
            self._close(pool, patience)

    def _rest(self, pause: float, candidates: Candidates, deadline: float | None) -> None:
        """Wait for the end of a run, or for as long as nothing is due."""
        due = candidates.seconds_to_next()
        if due:
            pause = min(pause, due)
        if deadline is not None:
            pause = min(pause, max(0.0, deadline - time.monotonic()))
        if self._ring.wait(pause):
            self._ring.clear()

    def _take_what_fits(self, candidates: Candidates, pool: Pool) -> bool:
        """Claim runs while there are slots; whether any was there."""
        candidates.refresh()
        taken = False
        while not self.stopping and pool.active < pool.max_workers:
            run_id = candidates.next()
            if run_id is None:
                break
            taken = True
            try:
                if not self._take(run_id, pool):
                    candidates.look_at(run_id)
            except MicroflowException as problem:
                get_logger("worker").error("the queued run %s cannot be taken: %s", run_id, problem)
        return taken

    def _take(self, run_id: str, pool: Pool) -> bool:
        """Claim a run and put it to work; False when somebody else has it, or it has ended."""
        live = _claim_if_free(self.client, run_id)
        if live is None:
            return False
        try:
            work = self._serving.work(live, self._leaving)
            if len(live.run.former_owners) > MOST_TAKEOVERS:
                work = GivenUp(work, _given_up(live))
            job = _Job(self, work, live)
        except BaseException:  # nobody has it then: the next worker is to see
            self.client.abandon(live)
            raise
        with self._lock:
            self.in_flight_task_runs.setdefault(work.key, {})[live.run.flow_run.id] = _now()
        if not pool.put(job):  # the worker was stopped at this moment
            job.let_go(None)
        return True

    def _finished(self, job: _Job, live: LiveRun, again: bool) -> None:
        key = job.work.key
        if again and self._candidates is not None:
            self._candidates.look_again_at(live.run_id)
        with self._lock:
            self.in_flight_task_runs.get(key, {}).pop(live.run.flow_run.id, None)
            self.finished_task_runs[key] = self.finished_task_runs.get(key, 0) + 1
        self._ring.set()

    def _close(self, pool: Pool, patience: float | None) -> None:
        self._leaving.set()
        for job in pool.close():
            job.let_go(None)  # type: ignore[attr-defined]  # the pool's jobs are ours
        pool.join(patience)
        self._pool = None

    def stop(self) -> None:
        """Take nothing more; ``start`` returns when what runs has ended. RuntimeError unless started."""
        if self._pool is None:
            raise RuntimeError("This worker is not started")
        self.stopping = True

    async def astop(self) -> None:
        """The coroutine form of :meth:`stop`."""
        self.stop()

    def execute_task_run(self, task_run: TaskRun) -> None:
        """Take one deferred run, in a started worker, as soon as a slot is free; returns when it has begun.

        RuntimeError when another process has it, or it has ended."""
        pool = self._pool
        if pool is None:
            raise RuntimeError("This worker is not started")
        while pool.active >= pool.max_workers and not self.stopping:
            time.sleep(SHORTEST_PAUSE)
        if not self._take(task_run.text, pool):
            raise RuntimeError(f"task run {task_run.id} is run by another process, or has ended")

    # ------------------------------------------------------------------------------------------ as a context

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=copy_context().run, args=(self.start,), name="microflow worker")
        self._thread.start()
        while self._pool is None and self._thread.is_alive():
            time.sleep(SHORTEST_PAUSE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping = True
        if self._thread is not None:
            self._thread.join()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping = True
        await AsyncioWaits().block(self.__exit__, kind, error, trace)


def _now() -> datetime:
    moment = to_datetime(now_us())
    assert moment is not None
    return moment


class TaskWorker(Worker):
    """A worker that serves tasks only."""

    def __init__(self, *tasks: Task[Any, Any], limit: int | None = 10) -> None:
        for task in tasks:
            if not hasattr(task, "task_key"):
                raise TypeError(f"only tasks can be served, not {task!r}")
        super().__init__(*tasks, limit=limit)


def _sorted(
    served: tuple[Any, ...], limit: Any
) -> tuple[tuple[Task[Any, Any], ...], tuple[Flow[Any, Any], ...], tuple[ToBeDeployed, ...]]:
    """Tasks, flows, and what is to be deployed of what was given; raises when something is wrong with it."""
    tasks: list[Task[Any, Any]] = []
    flows: list[Flow[Any, Any]] = []
    for each in served:
        flow: Any = each.flow if isinstance(each, ToBeDeployed) else each
        if hasattr(flow, "task_key"):
            tasks.append(flow)
        elif hasattr(flow, "flow_run_name"):
            flows.append(flow)
        else:
            raise TypeError(f"only tasks and flows can be served, not {each!r}")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a whole number of at least 1, or None for any number; got {limit!r}")
    return tuple(tasks), tuple(flows), tuple(each for each in served if isinstance(each, ToBeDeployed))


def _claim_if_free(client: SyncClient, run_id: str) -> LiveRun | None:
    """Claim a run; None at once, and nothing appended, when another process works on it or was faster, or when it has
    ended."""
    run = client.fold(run_id)
    if has_ended(run.flow_run.state) or client.is_alive(run):
        return None
    return client.append_claim(run, forced=False)


def _given_up(live: LiveRun) -> State[Any]:
    """The end of a run that is not run again. Dying before it is recorded, the next worker does that."""
    many = len(live.run.former_owners)
    return Crashed(message=f"{many} processes ended while they ran it; it is not run again.")


# --------------------------------------------------------------------------------------------------- serve


def serve(
    *served: Served,
    limit: int | None = 10,
    status_server_port: int | None = None,
    timeout: float | None = None,
    _sync: bool | None = None,
) -> Awaitable[None] | None:
    """Take and run runs of the tasks and flows given, at most `limit` at a time, until SIGTERM or Ctrl-C, or for
    `timeout` seconds; what runs then is finished, the rest is left for others. In async code a coroutine.

    Of tasks, deferred runs are taken; of flows, scheduled runs that are due, resumed ones, and those whose process
    died, which are taken over up to three times and then recorded CRASHED. What ``flow.to_deployment(name)`` gives is
    deployed first. Flows are served by name: ValueError when two have the same.

    With `status_server_port`, ``GET http://127.0.0.1:<port>/status`` says what the worker does."""
    worker = Worker(*served, limit=limit)
    if choose_async(_sync):
        return _serve_async(worker, status_server_port, timeout)
    _serve(worker, status_server_port, timeout)
    return None


async def aserve(
    *served: Served, limit: int | None = 10, status_server_port: int | None = None, timeout: float | None = None
) -> None:
    """The coroutine form of :func:`serve`."""
    await _serve_async(Worker(*served, limit=limit), status_server_port, timeout)


def _watched(worker: Worker, port: int | None) -> AbstractContextManager[Any]:
    if port is None:
        return nullcontext()
    from ._worker_status import StatusServer  # loads a web server: only for workers that are watched

    return StatusServer(worker, port)


def _serve(worker: Worker, port: int | None, timeout: float | None) -> None:
    names = ", ".join(repr(each.name) for each in (*worker.tasks, *worker.flows))
    get_logger("worker").info("worker %s serves %s", worker.client_id, names)
    with _watched(worker, port), _stopped_by_signals(worker):
        worker.start(timeout)
    get_logger("worker").info("worker %s has stopped", worker.client_id)


async def _serve_async(worker: Worker, port: int | None, timeout: float | None) -> None:
    with _watched(worker, port), _stopped_by_signals(worker):
        try:
            await AsyncioWaits().block(worker.start, timeout)
        finally:
            worker.stopping = True


@contextmanager
def _stopped_by_signals(worker: Worker) -> Iterator[None]:
    """SIGTERM and the first Ctrl-C stop the worker; a second Ctrl-C interrupts. Only the main thread can do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if worker.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        worker.stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

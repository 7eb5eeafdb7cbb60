# SPDX-License-Identifier: Apache-2.0
"""Waiting for the end of task runs, of this process or of others, one or many.

Goal: whoever knows the id of a task run can wait for its end, in blocking code, on an event loop, or by a callback;
any number of waiters for one run, any number of runs, and none of them is lost or called twice.

The rule: a *watch* subscribes to the run first, then reads what is recorded, and only then waits. What it hears of
is judged by the type of the state, never by its name, so that ends named ``Cached`` or ``TimedOut`` count; a run
that will not start because its upstream failed (``NotReady``) has come to its end as well. Ends of this process
arrive by the bus, in the thread that appended them. Only for a run of another process, or one that nobody has
recorded yet, is there a thread: the store's follower, as long as somebody waits.

A log that is deleted or damaged while it is watched ends the wait with the error that reading it raises, and so does
whatever else goes wrong when news are looked at: nobody would be told of an end after that.

A run whose process was killed is CRASHED within about a second, except for a deferred one: another worker will take
that one over, and the wait goes on.

Known hole: a task run of another process's flow run that is not recorded yet when the wait begins, and never gets a log
of its own, is not found. Submitting records a run before its id can be told to anybody.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from ._follower import lend
from ._forks import new_lock
from ._loggers import get_logger
from ._waits import AsyncioWaits, BlockingWaits, Waits, call_later, check_not_alone, finish, slot_given_back
from .client.fold import state_of
from .client.objects import FINAL
from .client.orchestration import SyncClient, current_client
from .states import Crashed, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from .client.fold import Run
    from .events import Record

_FINAL_TYPES = frozenset(kind.value for kind in FINAL)


def has_ended(state: State[Any] | None) -> bool:
    """Whether nothing more will come after this state of a task run."""
    return state is not None and (state.type in FINAL or state.is_not_ready())


def recorded_end(run: Run, task_run_id: UUID, client: SyncClient) -> State[Any] | None:
    """What a task run of this log has ended in, None while it has not. One whose flow run nobody works on any more
    has CRASHED, and so has one that was never started then."""
    key = str(task_run_id)
    if (run.is_task and key == run.run_id) or client.is_worked_on(run):
        state = run.task_run(key).state  # what is recorded; a deferred run is taken over by another worker
        return state if has_ended(state) else None
    flow_state = run.seen(False)
    state = run.seen_task(key, flow_state).state
    if has_ended(state):
        return state
    if flow_state is None or not flow_state.is_final():
        return None
    crashed: State[Any] = Crashed(message="The process of its flow run ended before the run did.")
    crashed.state_details.task_run_id, crashed.state_details.flow_run_id = task_run_id, run.flow_of_tasks
    return crashed


class Watch:
    """Calls back once, with the final state, when a run has ended; with None when it is given up, or when ``error``
    says why its end will not be known."""

    def __init__(self, run_id: UUID, callback: Callable[[State[Any] | None], object]) -> None:
        self._id = run_id
        self._key = str(run_id)
        self._callback = callback
        self._client = current_client()
        self.error: Exception | None = None
        # guards `error` and the next three; nothing is called while it is held
        self._lock = threading.Lock()
        self._over = False
        self._followed = False
        self._stack = ExitStack()

    def begin(self) -> None:
        """Subscribe, then look; the callback is called in here when the run has ended already."""
        raise NotImplementedError

    def hear_of_log(self, record: Record) -> None:
        """A record of a log that is followed."""
        raise NotImplementedError

    def follow(self, log: str, position: int) -> None:
        """Hear of everything in a log from `position` on, whoever appends it."""
        store = self._client.store
        with self._lock:
            if self._followed or self._over:
                return
            self._followed = True
        self.keep(store.bus.subscribe_log(log, self.heard(self.hear_of_log)))
        following = store.follow(log, position)
        following.__enter__()
        self.keep(lambda: following.__exit__(None, None, None))

    def heard(self, take: Callable[[Record], object]) -> Callable[[Record], None]:
        """`take` as a subscriber: what it raises is for those who wait."""

        def hear(record: Record) -> None:
            if self._over:
                return
            try:
                take(record)
            except Exception as error:  # also what a store of the user's raises
                if self._over:
                    raise  # nobody waits any more; the bus logs it
                self.fire(None, error=error)

        return hear

    def keep(self, end: Callable[[], object]) -> None:
        """Have `end` called when the watch is over."""
        with self._lock:
            if not self._over:
                self._stack.callback(end)
                return
        end()

    def fire(
        self, state: State[Any] | None, log: str = "", position: int = 0, *, error: Exception | None = None
    ) -> None:
        """The run has ended in `state`; None: the watch is given up, for the `error` if there is one. What says so
        stands before `position` of `log`, and is on the disk before anybody acts on it, where durability says so: what
        can be read may not be there yet, whoever wrote it."""
        with self._lock:
            if self._over:
                return
            self._over = True
            self.error = error
            stack = self._stack
        stack.close()
        if log and self._client.store.durability == "disk":
            try:
                self._client.store.sync(log, position)
            except Exception as problem:  # also a user's store's: whoever waits is not to wait for ever
                get_logger("task_runs").error("the end of %s may not survive a power cut: %s", self._key, problem)
        self._callback(state)

    def end(self) -> None:
        """Watch no longer; the callback is not called any more."""
        with self._lock:
            self._over = True
            stack = self._stack
        stack.close()


class TaskRunWatch(Watch):
    """Watches a task run."""

    def begin(self) -> None:
        """Subscribe, then look; the callback is called in here when the run has ended already."""
        self.keep(self._client.store.bus.subscribe(self._key, self.heard(self._hear)))
        here = self._client.tasks.find(self._id)
        if here is not None:
            if has_ended(here.state):
                self.fire(here.state)
            return
        for live in list(self._client.owned.values()):
            of_this_process = live.live.get(self._key)
            if of_this_process is not None:
                if has_ended(of_this_process.state):  # NotReady
                    self.fire(of_this_process.state)
                    return
                # it is of this process, until the flow run leaves it
                self.keep(self._client.store.bus.subscribe_log(live.run_id, self.heard(self._hear_of_own_log)))
                return
        run = next(iter(self._client.logs_of(self._id, None)), None)
        if run is None:
            self.follow(self._key, 0)  # perhaps a deferred run of another process
            return
        state = recorded_end(run, self._id, self._client)
        if state is not None:
            self.fire(state, run.run_id, run.position)
        else:
            self.follow(run.run_id, run.position)

    def _hear(self, record: Record) -> None:
        """A record about the task run."""
        data = record.data
        if record.kind == "state" and (data["type"] in _FINAL_TYPES or data.get("name") == "NotReady"):
            here = self._client.tasks.find(self._id)
            if here is not None:
                self.fire(here.state)
                return
            log = record.run_id
            flow_run_id = None if log == self._key else UUID(log)
            self.fire(state_of(data, flow_run_id, self._id, self._client.store, log), log, record.position + 1)

    def _hear_of_own_log(self, record: Record) -> None:
        """The flow run may leave this process: suspended, it goes on in another one."""
        if record.kind == "state" and "run" not in record.data and record.data["type"] != "RUNNING":
            self.follow(record.run_id, record.position)

    def hear_of_log(self, record: Record) -> None:
        """A record of the log: only what concerns the flow run is news, since it may be the end of all its tasks."""
        if "run" in record.data or record.kind in ("task", "run"):
            return
        run, problem = self._client.fold_what_is_readable(record.run_id)
        if self._key in run.tasks:
            state = recorded_end(run, self._id, self._client)
            if state is not None:
                self.fire(state, run.run_id, run.position)
                return
        if problem is not None:
            raise problem


class FlowRunWatch(Watch):
    """Watches a flow run. ObjectNotFound from ``begin`` when there is no such run."""

    def begin(self) -> None:
        """Subscribe, then look."""
        self.keep(self._client.store.bus.subscribe_log(self._key, self.heard(self.hear_of_log)))
        run = self._look()
        if run is not None and self._key not in self._client.owned:
            self.follow(self._key, run.position)

    def _look(self) -> Run | None:
        """The run, unless it has ended."""
        run = self._client.fold(self._key)
        state = self._client.seen(run)
        if state is not None and state.is_final():
            self.fire(state, self._key, run.position)
            return None
        return run

    def hear_of_log(self, record: Record) -> None:
        """A record of the flow run is news, those of its tasks are not."""
        if "run" not in record.data and record.kind != "task":
            run = self._look()
            if run is not None and record.kind == "state" and record.data["type"] != "RUNNING":
                self.follow(self._key, run.position)  # suspended, it goes on in another process


class _End:
    """The end of a run as a thing to be waited for (``_waits.Waitable``), at most `timeout` seconds."""

    def __init__(self, kind: type[Watch], run_id: UUID, timeout: float | None) -> None:
        self.state: State[Any] | None = None
        self.watch = kind(run_id, self._arrive)
        self._timeout = timeout
        self._come = threading.Event()
        self._callback: Callable[[Any], object] | None = None
        self._timer: Any = None

    def __enter__(self) -> _End:
        try:
            self.watch.begin()
        except BaseException:  # there is no such run, or its log cannot be read
            self.watch.end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.watch.end()
        if self._timer is not None:
            self._timer.cancel()

    def _arrive(self, state: State[Any] | None) -> None:
        self.state = state
        self._come.set()
        if self._callback is not None:
            self._callback(self)

    def needs_waiting(self) -> bool:
        """Whether there is something to wait for."""
        return not self._come.is_set() and (self._timeout is None or self._timeout > 0)

    def wait(self, timeout: float | None = None) -> None:
        """Block until the run has ended or the time is up."""
        check_not_alone()
        with slot_given_back():
            self._come.wait(self._timeout)

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn`, which does not mind to be called twice, when the run has ended or the time is up; on a loop."""
        self._callback = fn
        if self._timeout is not None:
            self._timer = call_later(self._timeout, fn, self)
        if self._come.is_set():
            fn(self)


async def end_of(
    kind: type[Watch], run_id: UUID, waits: Waits, timeout: float | None, among: set[Watch] | None = None
) -> State[Any] | None:
    """What a run has ended in, once it has; None when `timeout` seconds have passed before. 0 looks once. Raises what
    keeps its end from being known, as when its log is deleted meanwhile."""
    end = _End(kind, run_id, timeout)
    if among is not None:
        among.add(end.watch)
    try:
        with end:
            if end.needs_waiting():
                await waits.wait(end)
            if end.watch.error is not None:
                raise end.watch.error
            return end.state
    finally:
        if among is not None:
            among.discard(end.watch)


class TaskRunWaiter:
    """Waits for task runs to end. ``wait_for_task_run`` and ``add_done_callback`` are called on the class.

    There is one :meth:`instance` in a process; an object made by hand is not it, and its methods work all the same.
    Nothing has to be started or stopped: a thread exists only while somebody waits for a run of another process."""

    # guards the instance
    _creating: ClassVar[threading.Lock] = new_lock()
    _instance: ClassVar[TaskRunWaiter | None] = None

    def __init__(self) -> None:
        self._started = False
        self._watches: set[Watch] = set()

    @classmethod
    def instance(cls) -> TaskRunWaiter:
        """The waiter of this process, started; a new one after ``stop()``."""
        with cls._creating:
            waiter = TaskRunWaiter._instance
            if waiter is None:
                waiter = TaskRunWaiter._instance = TaskRunWaiter()
                waiter.start()
            return waiter

    def start(self) -> None:
        """Accepted and not needed: there is nothing to connect to."""
        self._started = True

    def stop(self) -> None:
        """Wake everybody who waits, with None, and forget the callbacks. The next :meth:`instance` is another one."""
        with self._creating:
            if TaskRunWaiter._instance is self:
                TaskRunWaiter._instance = None
        self._started = False
        while self._watches:
            self._watches.pop().fire(None)

    @classmethod
    async def wait_for_task_run(cls, task_run_id: UUID, timeout: float | None = None) -> State[Any] | None:
        """Wait, on the running loop, until a task run has ended; gives its final state, or None when `timeout` seconds
        have passed before (0 looks once), or when the waiter is stopped. A run that nobody knows yet is waited for;
        ObjectNotFound when it is deleted meanwhile, DamagedLog when its log is damaged."""
        return await end_of(TaskRunWatch, task_run_id, AsyncioWaits(), timeout, cls.instance()._watches)

    @classmethod
    def block_for_task_run(cls, task_run_id: UUID, timeout: float | None = None) -> State[Any] | None:
        """:meth:`wait_for_task_run` for blocking code."""
        return finish(end_of(TaskRunWatch, task_run_id, BlockingWaits(), timeout, cls.instance()._watches))

    @classmethod
    def add_done_callback(cls, task_run_id: UUID, callback: Callable[[], object]) -> None:
        """Call `callback`, without arguments, once the run has ended or been deleted: here when it has ended already,
        else in the thread that ends it or hears of its end. What it raises there is logged. A callback that is still
        waiting does not keep the process from ending."""
        waiter = cls.instance()
        begun = False

        def call(state: State[Any] | None) -> None:
            waiter._watches.discard(watch)
            if state is not None or watch.error is not None:
                # not even an interrupt may get out where a run ends: others are still to be told
                call_contained(callback, f"task run {task_run_id}", BaseException if begun else Exception)

        watch = TaskRunWatch(task_run_id, call)
        waiter._watches.add(watch)
        watch.begin()
        begun = True


def call_contained(callback: Callable[[], object], run: str, contained: type[BaseException]) -> None:
    """Call a callback of the user's; what it raises is logged (I7)."""
    try:
        lend(callback)
    except contained:
        get_logger("task_runs").exception("a done-callback of %s raised", run)

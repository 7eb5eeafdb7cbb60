# SPDX-License-Identifier: Apache-2.0
"""The worker threads of a runner: slots, not threads, are what is limited.

Goal: at most ``max_workers`` runs are active at a time; a run that waits for its children never keeps them
from starting; nothing is parked for work that cannot run yet.

What does not work: ``ThreadPoolExecutor`` deadlocks when a worker waits for work that is queued behind it; an
unbounded pool grows a thread for each level and each waiting dependent; running the child on the stack of
the waiting parent runs user code inside user code, with its locks held.

The rule: a *slot* is the right to be active. A worker takes a job only with a slot. While its job waits for
another run it gives the slot back, and the slot goes to a returning worker first, then to queued work (on
an idle thread or a new one, the compensating thread), else it is free. A job on an event loop holds a slot
without a thread. Threads are as many as active plus waiting jobs; idle ones stay until the pool is closed.

One lock guards all fields. No job runs, and no callback is called, while it is held.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from ._loggers import get_logger
from ._typing_only import Protocol
from ._waits import SLOT

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from contextvars import Context


class NoThread(RuntimeError):
    """The system has no thread to give, and none of the pool's is there to run the job."""


class Job(Protocol):
    """What the pool runs."""

    #: whether it is a coroutine for the loop thread
    isasync: bool
    context: Context
    loop_thread: LoopThread | None

    def run(self, slot: PoolSlot) -> None:
        """Run it to its end in this thread. Raises nothing but what a broken callback raised."""

    async def run_async(self, slot: PoolSlot) -> None:
        """Run it to its end on the loop of this thread."""


class PoolSlot:
    """The slot of one job (``_waits.Slot``). Nested and concurrent waits of a job give it back once."""

    __slots__ = ("_depth", "_pool", "_stopped", "job")

    def __init__(self, pool: Pool, job: Job) -> None:
        self._pool = pool
        self._depth = 0
        self._stopped: list[PoolSlot] = []  # of the other jobs on the loop that this one blocks
        self.job = job

    def give_back(self, *, blocking: bool = True) -> None:
        """Let another job have the slot. A loop thread that is about to block hands its waiting jobs on, and the
        slots of those that it stops."""
        if blocking:
            for other in self._pool.leave_loop(self):
                self._stopped.append(other)
                other.give_back(blocking=False)
        with self._pool.lock:
            self._depth += 1
            if self._depth == 1:
                self._pool.pass_on()

    def take_again(self, *, at_once: bool = False) -> None:
        """Have a slot again; a loop thread must not block and takes one `at_once`, over the limit."""
        while self._stopped:
            self._stopped.pop().take_again(at_once=True)
        turn = None
        with self._pool.lock:
            self._depth -= 1
            if self._depth:
                return
            if at_once or self._pool.active < self._pool.max_workers:
                self._pool.active += 1
            else:
                turn = threading.Lock()
                turn.acquire()
                self._pool.returning.append(turn)
        if turn is not None:
            turn.acquire()


if hasattr(os, "register_at_fork"):
    # the slot of the job that forked is the parent's: its pool's lock may be held there, and its threads are not here
    os.register_at_fork(after_in_child=lambda: SLOT.set(None))


class Pool:
    """Threads that run jobs in the order in which they were put."""

    def __init__(self, max_workers: int, name: str) -> None:
        self.max_workers = max_workers
        self.name = name
        self.lock = threading.Lock()
        self._ready = threading.Condition(self.lock)
        self._queue: deque[Job] = deque()
        #: slots in use
        self.active = 0
        #: those who gave a slot back and want one again, first come first served
        self.returning: deque[threading.Lock] = deque()
        self._idle = 0
        self._grants = 0  # slots handed to idle threads that have not woken yet; never more than idle ones
        self._threads: list[threading.Thread] = []
        self._loops: list[LoopThread] = []
        self._for_loops: deque[Job] = deque()
        self._closed = False
        #: the jobs that run now; adding and removing are atomic
        self.running: set[Job] = set()

    def is_unused(self) -> bool:
        """Whether no thread was ever started."""
        return not self._threads

    def put(self, job: Job) -> bool:
        """Queue a job; False when the pool is closed."""
        with self.lock:
            if self._closed:
                return False
            self._queue.append(job)
            if self.active < self.max_workers:
                self.active += 1
                try:
                    self._grant()
                except RuntimeError as error:  # nobody would ever run it: the caller is told, and nothing is queued
                    self._queue.pop()
                    raise NoThread(str(error)) from error
        return True

    def _grant(self) -> None:
        """Hand a slot that is counted as active to an idle thread or a new one. Called with the lock."""
        if self._idle > self._grants:
            self._grants += 1
            self._ready.notify()
            return
        # Leaving the runner joins it. A daemon is what an interrupted program can leave behind.
        thread = threading.Thread(target=self._work, name=f"{self.name}-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give; those who are active serve the queue
            self.active -= 1
            if not self.active:
                raise
        else:
            self._threads.append(thread)

    def pass_on(self) -> None:
        """Give a slot to whoever needs it next. Called with the lock, by its holder."""
        if self.active > self.max_workers:
            self.active -= 1  # somebody took one over the limit; this one makes up for it
        elif self.returning:
            self.returning.popleft().release()
        elif self._queue and not self._closed:
            self._grant()
        else:
            self.active -= 1

    def _work(self) -> None:
        """The life of a worker thread; begins with a slot."""
        job = self._next()
        while job is not None:
            if job.isasync:
                self._to_loop(job)  # the slot goes with it
                job = self._next(has_slot=False)
                continue
            self.running.add(job)
            try:
                job.context.run(job.run, PoolSlot(self, job))
            except BaseException:  # a callback of the user's broke; the worker and the others go on (I7)
                get_logger("task_runners").exception("a callback in worker thread %s raised", self.name)
            finally:
                self.running.discard(job)
            job = self._next()

    def _next(self, has_slot: bool = True) -> Job | None:
        """The next job and a slot for it; None when the pool is closed."""
        with self.lock:
            while True:
                if has_slot:
                    if self._queue and not self.returning and self.active <= self.max_workers:
                        return self._queue.popleft()
                    self._let_slot_go()
                self._idle += 1
                while not self._grants and not self._closed:
                    self._ready.wait()
                self._idle -= 1
                if not self._grants:
                    return None
                self._grants -= 1
                has_slot = True

    def _let_slot_go(self) -> None:
        if self.returning and self.active <= self.max_workers:
            self.returning.popleft().release()
        else:
            self.active -= 1

    def close(self) -> list[Job]:
        """Take no more jobs; returns those that have not started."""
        with self.lock:
            self._closed = True
            left = [*self._queue, *self._for_loops]
            self.active -= len(self._for_loops)
            self._queue.clear()
            self._for_loops.clear()
            self._ready.notify_all()
        return left

    def interrupt_coroutines(self) -> None:
        """Cancel what runs on the loops; threads cannot be interrupted."""
        for loop_thread in list(self._loops):
            loop_thread.cancel()

    def join(self, patience: float | None = None) -> bool:
        """Wait until every started job has ended and every thread of the pool is gone, at most `patience` seconds;
        says whether all are."""
        deadline = None if patience is None else time.monotonic() + patience

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        try:
            for thread in list(self._threads):
                thread.join(left())
        finally:  # also when Ctrl-C ends the wait: a loop that nobody stops would keep the process for ever
            for loop_thread in self._loops:
                loop_thread.end_when_done()
        loops_ended = [loop_thread.close(left()) for loop_thread in self._loops]  # grows meanwhile when one is blocked
        return all(loops_ended) and not any(thread.is_alive() for thread in self._threads)

    # ---------------------------------------------------------------------------- coroutines on loop threads

    def _to_loop(self, job: Job) -> None:
        with self.lock:
            self._for_loops.append(job)
            if not self._loops:
                self._loops.append(LoopThread(f"{self.name}-loop"))
            loop_thread = self._loops[-1]
        loop_thread.call(self._start_one, loop_thread)

    def _start_one(self, loop_thread: LoopThread) -> None:
        with self.lock:
            if not self._for_loops:
                return  # it was started on another loop thread meanwhile
            job = self._for_loops.popleft()
        job.loop_thread = loop_thread
        job.context.run(loop_thread.start, self._run_async(job, loop_thread))

    async def _run_async(self, job: Job, loop_thread: LoopThread) -> None:
        slot = PoolSlot(self, job)
        loop_thread.slots.add(slot)
        self.running.add(job)
        try:
            await job.run_async(slot)
        except BaseException:  # a callback of the user's broke; an interrupt out of here would end the loop (I7)
            get_logger("task_runners").exception("a callback on the loop thread of %s raised", self.name)
        finally:
            loop_thread.slots.discard(slot)
            self.running.discard(job)
            with self.lock:
                self.pass_on()

    def leave_loop(self, slot: PoolSlot) -> list[PoolSlot]:
        """This thread is about to block. If it is a loop's, what was to start on it starts on another one. Gives
        the other slots of that loop: their jobs stand still meanwhile."""
        here = threading.current_thread()
        with self.lock:
            mine = next((loop for loop in self._loops if loop.thread is here), None)
            if mine is None:
                return []
            if mine is self._loops[-1]:
                self._loops.append(LoopThread(f"{self.name}-loop-{len(self._loops)}"))
            waiting, loop_thread = len(self._for_loops), self._loops[-1]
        for _ in range(waiting):
            loop_thread.call(self._start_one, loop_thread)
        return [other for other in mine.slots if other is not slot]


class LoopThread:
    """An event loop in a thread of its own; the async tasks of a runner share one."""

    def __init__(self, name: str) -> None:
        import asyncio  # only runners that are given coroutine tasks come here

        self._loop = asyncio.new_event_loop()
        self._tasks: set[Any] = set()
        self._ending = False
        self.blocked_by: Any = None  # kept by _deadlocks
        self.slots: set[PoolSlot] = set()  # of the jobs on it; touched by its own thread only
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def call(self, fn: Any, *args: Any) -> None:
        """Call `fn` on the loop soon."""
        self._loop.call_soon_threadsafe(fn, *args)

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine; called on the loop, in the context that the coroutine is to have."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end_when_done(self) -> None:
        """Have the loop stop by itself, and its thread end, once what runs on it has ended."""
        import asyncio  # only a loop thread comes here

        async def finish() -> None:
            while self._tasks:
                await asyncio.wait(list(self._tasks))
            await self._loop.shutdown_asyncgens()
            await self._loop.shutdown_default_executor()
            self._loop.stop()

        if not self._ending:
            self._ending = True
            asyncio.run_coroutine_threadsafe(finish(), self._loop)

    def cancel(self) -> None:
        """Cancel what runs on the loop."""

        def cancel_tasks() -> None:
            for task in list(self._tasks):
                task.cancel()

        self._loop.call_soon_threadsafe(cancel_tasks)

    def close(self, patience: float | None = None) -> bool:
        """Wait for what runs, at most `patience` seconds, then end the loop and its thread; says whether it ended."""
        self.end_when_done()
        self.thread.join(patience)
        return not self.thread.is_alive()

# SPDX-License-Identifier: Apache-2.0
"""What takes the pool's place where no thread can be started: Pyodide, or a limit of the system.

A submitted blocking task runs at once, on the stack of who submits it: nobody else is there. So ``submit`` returns
a future that is done, and ``max_workers`` means nothing. A coroutine task runs on the event loop of this thread,
beside the coroutine that submitted it, and goes on whenever that awaits something; a blocking wait for it would
never end, and is refused by ``_deadlocks``. Without a running loop it is run to its end at once, like a blocking task.

What the end of another run releases is queued, and run when that run has left the stack: a chain of any length is
fine.

A coroutine flow that leaves its runner cancels the coroutine tasks that still run and waits for them. Known hole: a
blocking flow, called on a running loop, can only cancel them.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from . import _deadlocks
from ._loggers import get_logger
from ._waits import loop_is_running, run_coroutine


class _Slot:
    """The slot of one job; there is nobody to give it to."""

    __slots__ = ("job",)

    def __init__(self, job: Any) -> None:
        self.job = job

    def give_back(self, *, blocking: bool = True) -> None:
        """Keep it."""

    def take_again(self, *, at_once: bool = False) -> None:
        """Have it still."""


class InlinePool:
    """Has the methods of ``_pool.Pool`` that a runner uses."""

    def __init__(self) -> None:
        self._queue: deque[Any] = deque()
        self._stack: list[Any] = []
        self._draining = False
        self._closed = False
        self.running: set[Any] = set()  # nobody else could look
        self._tasks: dict[Any, Any] = {}  # asyncio's -> ours
        # as a loop thread of a pool: where ``_deadlocks`` looks
        self.thread = threading.current_thread()
        self.blocked_by: Any = None
        _deadlocks.only_thread = self.thread

    def is_unused(self) -> bool:
        """Whether closing it waits for nothing."""
        return True

    def put(self, job: Any) -> bool:
        """Run a job, or queue it if the end of another released it; False when the pool is closed."""
        if self._closed:
            return False
        if self._stack and self._stack[-1].has_ended():  # its callbacks are being called
            self._queue.append(job)
            return True
        self._run(job)
        if not self._draining:
            self._draining = True
            try:
                while self._queue:
                    self._run(self._queue.popleft())
            finally:
                self._draining = False
        return True

    def _run(self, job: Any) -> None:
        self._stack.append(job)
        try:
            if not job.isasync:
                job.context.run(job.run, _Slot(job))
            elif loop_is_running():
                job.context.run(self._start, job)
            else:
                job.context.run(run_coroutine, job.run_async(_Slot(job)))
        except BaseException:  # a callback of the user's broke; the others go on (I7)
            get_logger("task_runners").exception("a callback of a task that ran in place raised")
        finally:
            self._stack.pop()

    def _start(self, job: Any) -> None:
        import asyncio  # a loop is running, so it is loaded

        job.loop_thread = self
        task = asyncio.get_running_loop().create_task(job.run_async(_Slot(job)))
        self._tasks[task] = job
        task.add_done_callback(self._tasks.pop)

    def close(self) -> list[Any]:
        """Take no more jobs; returns those that have not started."""
        self._closed = True
        left, self._queue = list(self._queue), deque()
        self.cancel()
        return left

    def cancel(self) -> list[Any]:
        """Cancel the coroutine tasks that run; gives their futures."""
        for task in self._tasks:
            task.cancel()
        return [job.future for job in self._tasks.values()]

    def interrupt_coroutines(self) -> None:
        """They were cancelled when the pool was closed."""

    def join(self, patience: float | None = None) -> bool:
        """Nothing runs that could be waited for."""
        return True

# SPDX-License-Identifier: Apache-2.0
"""Envelopes over any ``concurrent.futures.Executor``.

What executors really do differs (``microflow.testing.check_executor`` prints it), so little is believed of them: they
are given one module-level function and one positional argument, bytes that no two calls share. Hence none can swallow
a keyword argument, take two attempts for one, or choke on an exception; their futures are asked for one thing,
``add_done_callback``, and nothing is done in the thread that calls back but to wake those that wait.

``cancel`` of a handle is never believed either: Dask says True of a call that goes on. An attempt that is under way
there cannot be stopped; one whose time is over is given up, and its late outcome is dropped. It fills its worker for as
long as its handle is not done, and whoever needs a worker waits for another one, here, where no time counts.

An executor that is given is its owner's to shut down. One that a factory made is ours: it is made when it is first
needed, made anew when it broke or when all of its workers are filled with what was given up, and shut down with the
runner. Its worker processes are killed then if attempts may still be under way in them: those that were given up, and
all of an interrupted flow run.

Known holes: of an executor that does not tell its size, or that somebody else uses too, nobody knows what fills its
workers. An executor that is given cannot be replaced: when attempts without end fill it, all others wait.

A pool that forks is Linux's default before Python 3.14. What its workers take over from a program with threads, and
must not use, is said in ``_forks``; a pool that is given forks all of them in the thread of the first submit, when
the runner has no threads yet.
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any

from ._attempt import run_envelope
from ._loggers import get_logger
from ._processes import AttemptTimedOut
from .exceptions import WorkerLost, describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future
    from uuid import UUID


#: how long a pool whose workers were killed may take to end, in seconds
GRACE = 5.0


class _Workers:
    """An executor, and the attempts that fill its workers. The carrier's lock guards it."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        #: how many there are, if it tells. It is given no more attempts than that, so that none waits in its queue,
        #: where time counts
        self.size = size_of(executor)
        #: an event for each attempt that it was given, until it says that this is over
        self.filled: set[threading.Event] = set()
        #: those of them that were given up
        self.overrun: set[threading.Event] = set()

    def is_free(self) -> bool:
        """Whether one of them can begin an attempt now."""
        return self.size is None or len(self.filled) < self.size

    def are_lost(self) -> bool:
        """Whether what was given up fills them all."""
        return self.size is not None and len(self.overrun) >= self.size


class ExecutorCarrier:
    """Carries envelopes to an executor that is given, or to those that a factory makes."""

    def __init__(self, executor: Executor | None, factory: Callable[[], Executor] | None) -> None:
        self._factory = factory
        # guards the fields below and tells of their changes; no executor and no factory is called with it held
        self._changed = threading.Condition(threading.Lock())
        self._workers = None if executor is None else _Workers(executor)
        self._is_making = False  # somebody makes an executor
        # what a factory made and nothing can stop: replaced, and waited for in the end
        self._left: list[Executor] = []
        self._is_prepared = False
        self._is_interrupted = False
        self._is_closed = False

    def prepare(self) -> None:
        """Have a pool that was given, and that forks, do so now."""
        with self._changed:
            workers, done, self._is_prepared = self._workers, self._is_prepared, True
        if workers is None or done or not forks(workers.executor):
            return
        _load_for_forks()
        try:
            workers.executor.submit(int)  # the first one starts all of its workers
        except Exception:  # it is broken or was shut down: the first attempt says so
            pass

    def carry(
        self, run_id: UUID, payload: bytes, timeout: float | None, on_log: Callable[[dict[str, Any]], None]
    ) -> bytes:
        """See ``_dispatch.Carrier``. The clock of `timeout` runs from the moment when the executor was given the
        attempt: what waits in a queue of the executor's own loses time there."""
        done = threading.Event()
        workers = self._admitted(done)
        handle = self._submitted(workers, payload, done)
        if not done.wait(timeout):
            self._give_up(workers, handle, done)
            raise AttemptTimedOut
        try:
            outcome: bytes = handle.result()
        except BaseException as loss:  # the function that it was given raises nothing: this is the executor's own word
            if self._is_interrupted:
                raise WorkerLost("its worker was killed, because its flow run was interrupted") from None
            if isinstance(loss, BrokenExecutor):
                self._replace(workers)
            raise WorkerLost(f"the executor lost the attempt: {describe(loss)}") from None
        return outcome

    def _admitted(self, done: threading.Event) -> _Workers:
        """The workers one of which is now the attempt's, until `done` is :meth:`_freed`."""
        while True:
            workers = self._current()
            with self._changed:
                if workers is self._workers and workers.is_free():
                    workers.filled.add(done)
                    return workers
                while workers is self._workers and not workers.is_free() and not self._is_closed:
                    self._changed.wait()

    def _freed(self, workers: _Workers, done: threading.Event) -> None:
        with self._changed:
            workers.filled.discard(done)
            workers.overrun.discard(done)
            self._changed.notify()
        done.set()

    def _submitted(self, workers: _Workers, payload: bytes, done: threading.Event) -> Future[bytes]:
        try:
            handle = workers.executor.submit(run_envelope, payload)
            handle.add_done_callback(lambda _: self._freed(workers, done))
        except Exception as refusal:  # whatever an executor says that is broken or was shut down
            self._freed(workers, done)
            self._replace(workers)
            raise WorkerLost(f"the executor takes no attempt: {describe(refusal)}") from refusal
        return handle

    def _give_up(self, workers: _Workers, handle: Future[bytes], done: threading.Event) -> None:
        try:
            handle.cancel()  # spares the work if it has not begun; the answer means nothing
        except Exception:  # Parsl's raises NotImplementedError
            pass
        with self._changed:
            if done in workers.filled:  # else it is over after all
                workers.overrun.add(done)
            lost = workers.are_lost()
        if lost:
            self._replace(workers)

    def _current(self) -> _Workers:
        """The executor, made first if need be: by one thread, without a lock, because the factory is the user's."""
        with self._changed:
            while True:
                self._check_open()
                if self._workers is not None:
                    return self._workers
                if not self._is_making:
                    break
                self._changed.wait()
            self._is_making = True
        made = None
        try:
            assert self._factory is not None, "an executor that was given stays, even when it is broken"
            executor = self._factory()
            if forks(executor):
                _load_for_forks()
            made = _Workers(executor)
        finally:
            with self._changed:
                closed, self._is_making = self._is_closed, False
                if not closed:
                    self._workers = made
                self._changed.notify_all()
        if closed:  # while the factory made it
            _shut_down(executor, wait=False, kill=True)
            self._check_open()
        return made

    def _check_open(self) -> None:
        if self._is_interrupted:
            raise WorkerLost("no worker is given to it: its flow run was interrupted")
        if self._is_closed:
            raise WorkerLost("no worker is given to it: its task runner has ended")

    def _replace(self, workers: _Workers) -> None:
        """Have the next attempt use a new executor, if there can be one: this one is broken, or all that it does was
        given up."""
        with self._changed:
            if self._factory is None or self._workers is not workers:
                return
            self._workers = None
            self._changed.notify_all()
            is_pool = _is_standard_pool(workers.executor)  # it is killed: nothing is left
            if not is_pool:
                self._left.append(workers.executor)
        _shut_down(workers.executor, wait=is_pool, kill=True)

    def interrupt(self) -> None:
        """End what an executor that the factory made does, as far as that can be done."""
        with self._changed:
            self._is_interrupted = True
        self.close(wait=False)

    def close(self, *, wait: bool = True) -> None:
        """Begin no attempt any more, and shut down what the factory made. What cannot be stopped is waited for, unless
        `wait` is false."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            if self._factory is None:
                return
            workers, self._workers = self._workers, None
            left, self._left = self._left, []
            overrun = workers is not None and bool(workers.overrun)
        if workers is not None:
            _shut_down(workers.executor, wait=wait, kill=overrun or not wait)
        for executor in left:
            _shut_down(executor, wait=wait, kill=True)


def _shut_down(executor: Executor, *, wait: bool, kill: bool) -> None:
    """Shut an executor down with as many of the arguments as it takes: Dask's takes one, loky's others."""
    if kill and _is_standard_pool(executor):
        _kill_pool(executor, wait)
        return
    taken = inspect.signature(executor.shutdown).parameters
    wanted = {"wait": wait, "cancel_futures": True, "kill_workers": kill}
    executor.shutdown(**{name: value for name, value in wanted.items() if name in taken})


def _is_standard_pool(executor: Any) -> bool:
    process = sys.modules.get("concurrent.futures.process")  # not loaded: it is none
    return process is not None and isinstance(executor, process.ProcessPoolExecutor)


def forks(executor: Any) -> bool:
    """Whether this is a pool of the standard library whose workers are forks of this process."""
    return _is_standard_pool(executor) and executor._mp_context.get_start_method() == "fork"


def _load_for_forks() -> None:
    """Load what a worker may need besides what is loaded: a module that another thread was loading at the moment of
    the fork can never be loaded there."""
    import asyncio  # noqa: F401  # for coroutine tasks


def _kill_pool(executor: Any, wait: bool) -> None:
    """Shut a pool of the standard library down and kill its workers. What it has no method for before Python 3.14."""
    workers = list((executor._processes or {}).values())
    manager = executor._executor_manager_thread
    # first: a manager that found a worker dead holds the lock that shutdown() takes, until the others have ended
    for worker in workers:
        try:
            worker.kill()
        except (OSError, ValueError):  # it has ended, and was joined
            continue
    executor.shutdown(wait=False, cancel_futures=True)
    if not wait:
        return
    deadline = time.monotonic() + GRACE
    for each in (*workers, *([] if manager is None else [manager])):
        each.join(max(0.0, deadline - time.monotonic()))
    if manager is not None and manager.is_alive():
        get_logger("task_runners").warning("a process pool whose workers were killed does not end")


def size_of(executor: Any) -> int | None:
    """How many calls an executor runs at a time, if it tells."""
    told = getattr(executor, "_max_workers", None)
    return told if isinstance(told, int) and told > 0 else None

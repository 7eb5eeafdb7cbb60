# SPDX-License-Identifier: Apache-2.0
"""Envelopes over any ``concurrent.futures.Executor``.

What executors really do differs (``microflow.testing.check_executor`` prints it), so little is believed of them: they
are given one module-level function and one positional argument, bytes that no two calls share. Hence none can swallow
a keyword argument, take two attempts for one, or choke on an exception; their futures are asked for one thing,
``add_done_callback``, and nothing is done in the thread that calls back but to wake the one that waits.

``cancel`` of a handle is never believed either: Dask says True of a call that goes on. An attempt that is under way
there cannot be stopped; one whose time is over is given up, and its late outcome is dropped.

An executor that is given is its owner's to shut down. One that a factory made is ours: it is made when it is first
needed, made anew when it broke, and shut down with the runner. Its worker processes are killed then if attempts may
still be under way in them: those that were given up, and all of an interrupted flow run.

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
    from concurrent.futures import Executor
    from uuid import UUID


#: how long a pool whose workers were killed may take to end, in seconds
GRACE = 5.0


class ExecutorCarrier:
    """Carries envelopes to an executor that is given, or to those that a factory makes."""

    def __init__(self, executor: Executor | None, factory: Callable[[], Executor] | None) -> None:
        self._factory = factory
        # guards the fields below; the factory is called without it
        self._lock = threading.Lock()
        self._executor = executor
        self._made: threading.Event | None = None  # set while somebody makes an executor
        # of the executor that the factory made, if it tells its size: as many as it has workers, so that no attempt
        # waits in its queue, where time counts
        self._slots: threading.Semaphore | None = None
        #: how often a broken executor was replaced
        self.rebuilt = 0
        # attempts that were given up and may go on
        self._overrun: set[Any] = set()
        self._is_prepared = False
        self._is_interrupted = False

    def prepare(self) -> None:
        """Have a pool that was given, and that forks, do so now."""
        with self._lock:
            executor, done, self._is_prepared = self._executor, self._is_prepared, True
        if executor is None or done or not forks(executor):
            return
        _load_for_forks()
        try:
            executor.submit(int)  # the first one starts all of its workers
        except Exception:  # it is broken or was shut down: the first attempt says so
            pass

    def carry(
        self, run_id: UUID, payload: bytes, timeout: float | None, on_log: Callable[[dict[str, Any]], None]
    ) -> bytes:
        """See ``_dispatch.Carrier``. The clock of `timeout` runs from the moment when the executor was given the
        attempt: what waits in a queue of the executor's own loses time there."""
        executor, slots = self._admitted()
        try:
            return self._carried_by(executor, payload, timeout)
        finally:
            if slots is not None:
                slots.release()

    def _admitted(self) -> tuple[Executor, threading.Semaphore | None]:
        """The executor, once it has a worker for another attempt, and what is to be released when that is over."""
        while True:
            executor = self._current()
            with self._lock:
                slots = self._slots
            if slots is None:
                return executor, None
            slots.acquire()
            with self._lock:
                if self._slots is slots and self._executor is executor:
                    return executor, slots
            slots.release()  # that executor broke meanwhile, or was shut down

    def _carried_by(self, executor: Executor, payload: bytes, timeout: float | None) -> bytes:
        done = threading.Event()
        try:
            handle = executor.submit(run_envelope, payload)
            handle.add_done_callback(lambda _: done.set())
        except Exception as refusal:  # whatever an executor says that is broken or was shut down
            self._is_broken(executor)
            raise WorkerLost(f"the executor takes no attempt: {describe(refusal)}") from refusal
        if not done.wait(timeout):
            self._give_up(handle)
            raise AttemptTimedOut
        try:
            outcome: bytes = handle.result()
        except BaseException as loss:  # the function that it was given raises nothing: this is the executor's own word
            if self._is_interrupted:
                raise WorkerLost("its worker was killed, because its flow run was interrupted") from None
            if isinstance(loss, BrokenExecutor):
                self._is_broken(executor)
            raise WorkerLost(f"the executor lost the attempt: {describe(loss)}") from None
        return outcome

    def _give_up(self, handle: Any) -> None:
        with self._lock:
            self._overrun.add(handle)
        handle.add_done_callback(self._overrun.discard)
        try:
            handle.cancel()  # spares the work if it has not begun; the answer means nothing
        except Exception:  # Parsl's raises NotImplementedError
            pass

    def _current(self) -> Executor:
        """The executor, made first if need be: by one thread, without a lock, because the factory is the user's."""
        while True:
            with self._lock:
                if self._is_interrupted:
                    raise WorkerLost("no worker is given to it: its flow run was interrupted")
                if self._executor is not None:
                    return self._executor
                made = self._made
                mine = made is None
                if made is None:
                    made = self._made = threading.Event()
            if not mine:
                made.wait()
                continue
            executor = None
            try:
                assert self._factory is not None, "an executor that was given stays, even when it is broken"
                executor = self._factory()
                if forks(executor):
                    _load_for_forks()
                return executor
            finally:
                size = None if executor is None else size_of(executor)
                with self._lock:
                    self._executor, self._made = executor, None
                    self._slots = None if size is None else threading.Semaphore(size)
                made.set()

    def _is_broken(self, executor: Executor) -> None:
        """Have the next attempt use a new one, if there can be one."""
        with self._lock:
            if self._factory is None or self._executor is not executor:
                return
            self._executor = self._slots = None
            self.rebuilt += 1
        _shut_down(executor, wait=False, kill=True)

    def interrupt(self) -> None:
        """End what an executor that the factory made does, as far as that can be done."""
        with self._lock:
            self._is_interrupted = True
        self.close(wait=False)

    def close(self, *, wait: bool = True) -> None:
        """Shut down an executor that the factory made. What cannot be stopped is waited for, unless `wait` is false."""
        if self._factory is None:
            return
        with self._lock:
            executor, self._executor, self._slots = self._executor, None, None
            overrun = bool(self._overrun)
        if executor is not None:
            _shut_down(executor, wait=wait, kill=overrun or not wait)


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
    executor.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        try:
            worker.kill()
        except (OSError, ValueError):  # it has ended, and was joined
            continue
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

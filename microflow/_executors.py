# SPDX-License-Identifier: Apache-2.0
"""Envelopes over any ``concurrent.futures.Executor``.

What executors really do differs (``microflow.testing.check_executor`` prints it), so little is believed of them: they
are given one module-level function and one positional argument, bytes that no two calls share. Hence none can swallow
a keyword argument, take two attempts for one, or choke on an exception; their futures are asked for one thing,
``add_done_callback``, and nothing is done in the thread that calls back but to wake the one that waits.

``cancel`` of a handle is never believed either: Dask says True of a call that goes on. An attempt that is under way
there cannot be stopped; one whose time is over is given up, and its late outcome is dropped.

An executor that is given is its owner's to shut down. One that a factory made is ours: it is made when it is first
needed, made anew when it broke, and shut down with the runner.
"""

from __future__ import annotations

import inspect
import threading
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any

from ._attempt import run_envelope
from ._processes import AttemptTimedOut
from .exceptions import WorkerLost, describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from uuid import UUID


class ExecutorCarrier:
    """Carries envelopes to an executor that is given, or to those that a factory makes."""

    def __init__(self, executor: Executor | None, factory: Callable[[], Executor] | None) -> None:
        self._factory = factory
        # guards the fields below; the factory is called without it
        self._lock = threading.Lock()
        self._executor = executor
        self._made: threading.Event | None = None  # set while somebody makes an executor
        #: how often a broken executor was replaced
        self.rebuilt = 0
        # attempts that were given up and may go on
        self._overrun: set[Any] = set()

    def carry(
        self, run_id: UUID, payload: bytes, timeout: float | None, on_log: Callable[[dict[str, Any]], None]
    ) -> bytes:
        """See ``_dispatch.Carrier``. The clock of `timeout` runs from the moment when the executor was given the
        attempt: what waits in a queue of the executor's own loses time there."""
        executor = self._current()
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
                return executor
            finally:
                with self._lock:
                    self._executor, self._made = executor, None
                made.set()

    def _is_broken(self, executor: Executor) -> None:
        """Have the next attempt use a new one, if there can be one."""
        with self._lock:
            if self._factory is None or self._executor is not executor:
                return
            self._executor = None
            self.rebuilt += 1
        _shut_down(executor, wait=False, kill=True)

    def close(self, *, wait: bool = True) -> None:
        """Shut down an executor that the factory made. What cannot be stopped is waited for, unless `wait` is false."""
        if self._factory is None:
            return
        with self._lock:
            executor, self._executor = self._executor, None
            overrun = bool(self._overrun)
        if executor is not None:
            _shut_down(executor, wait=wait, kill=overrun or not wait)


def _shut_down(executor: Executor, *, wait: bool, kill: bool) -> None:
    """Shut an executor down with as many of the arguments as it takes: Dask's takes one, loky's others."""
    taken = inspect.signature(executor.shutdown).parameters
    wanted = {"wait": wait, "cancel_futures": True, "kill_workers": kill}
    executor.shutdown(**{name: value for name, value in wanted.items() if name in taken})


def size_of(executor: Any) -> int | None:
    """How many calls an executor runs at a time, if it tells."""
    told = getattr(executor, "_max_workers", None)
    return told if isinstance(told, int) and told > 0 else None

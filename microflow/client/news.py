# SPDX-License-Identifier: Apache-2.0
"""Waiting for news of runs: whoever waits subscribes first, then reads, then waits, and reads again when called.

News come from this process by the bus and from others by the follower. They say only *that* something happened to one
of the runs; what, is read from the log (``LiveRun.refresh``), so news may come twice, or for nothing.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .._waits import SLOT, call_later, check_not_alone, loop_is_running, slot_given_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .._waits import StopSignal, Waits
    from ..events import Record
    from .live import LiveRun


class News:
    """``with News(runs) as news: await news.next(waits, deadline)``, in either form (a ``_waits.Waitable``)."""

    def __init__(self, runs: Iterable[LiveRun]) -> None:
        self._runs = list(runs)
        self._rung = threading.Event()
        self._stack = ExitStack()
        self._callback: Callable[[Any], object] | None = None
        self._timer: Any = None
        self._deadline: float | None = None

    def __enter__(self) -> News:
        with ExitStack() as stack:
            for live in self._runs:
                stack.callback(live.store.bus.subscribe(live.run_id, self.ring))
                stack.enter_context(live.store.follow(live.run_id, live.run.position))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def ring(self, _: Record | StopSignal | None = None) -> None:
        """Something happened. Called in any thread."""
        self._rung.set()
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(self)

    async def next(self, waits: Waits, deadline: float | None = None, *, keep_slot: bool = False) -> bool:
        """Wait until something happens; False when the `deadline` of the monotonic clock passes first.

        The slot of a submitted run is given back meanwhile, unless it is to be kept: then no other run starts in
        place of this one."""
        self._deadline = deadline
        token = SLOT.set(None) if keep_slot else None
        try:
            if not self._rung.is_set():
                await waits.wait(self)
        finally:
            self._callback = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if token is not None:
                SLOT.reset(token)
        rung = self._rung.is_set()
        self._rung.clear()
        return rung

    def wait(self, timeout: float | None = None) -> None:
        """Block until something happens, or until the deadline."""
        check_not_alone()
        with slot_given_back():
            self._rung.wait(self._left())

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn` once when something happens, in any thread, or at the deadline, on the running loop."""
        self._callback = fn
        left = self._left()
        if left is not None and loop_is_running():
            self._timer = call_later(left, fn, self)
        if self._rung.is_set():
            self.ring()

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

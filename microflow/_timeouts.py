# SPDX-License-Identifier: Apache-2.0
"""Time limits that interrupt.

Goal: code that runs longer than its limit is stopped where it stands, and no half-made append or broken lock is
left behind.

What does not work: raising an exception into another thread (it arrives at any bytecode, also between a lock's
taking and its ``with``, and never inside of a blocking call); a helper thread that merely waits for the code (it
cannot stop it); raising a plain ``TimeoutError`` (``except Exception`` around the slow call swallows it).

The rule, by where the code runs:

* a coroutine is cancelled at its next ``await``;
* blocking code on the main thread is interrupted by an alarm (``SIGALRM``), in the middle of a blocking call too.
  The alarm raises :class:`TimeIsUp` only while the limited code itself is on the stack, and waits for an append of
  ours to end first. Nested limits share the one timer that a process has;
* blocking code in another thread, or where a program uses the alarm itself, cannot be stopped: that is the limit of
  Python. A timer calls ``on_overrun`` (which records the timeout), and each later call of ours that the overrun code
  makes raises :class:`TimeIsUp`, see :meth:`Limit.check`.

A limit that ran out has run out: code that swallows the interrupt and goes on to return a value is late all the same.

Known holes: a C function that neither returns nor handles signals holds an alarm up, and a coroutine that never
awaits holds up its cancellation; the first is noticed when it returns, the second not at all.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from ._waits import BlockingWaits

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable
    from types import FrameType

_PACKAGE = __name__.rpartition(".")[0]
#: while one of these is on the stack an append is being decided, written or taken in: an alarm waits for its end
_APPENDING = frozenset(f"{_PACKAGE}.{name}" for name in ("client.live", "client.memory", "stores", "log"))
#: the one function through which a blocking run calls what may be interrupted
_CALLING = BlockingWaits.call.__code__
#: seconds until an alarm that fell into an append rings again
_AGAIN = 0.001


class TimeIsUp(BaseException):
    """Interrupts code whose time limit has run out. A BaseException, so that ``except Exception`` lets it pass.

    The log of a subflow that the limit of its caller stopped holds the message alone."""

    __slots__ = ("limit",)  # not in ``__dict__``, which is written

    def __init__(self, message: str, limit: Limit | None = None) -> None:
        super().__init__(message)
        self.limit = limit

    @classmethod
    def of(cls, limit: Limit) -> TimeIsUp:
        """The interrupt of one limit."""
        return cls(f"the time limit of {limit.seconds:g} second(s) has run out", limit)


class Limit:
    """A running time limit. Started by :func:`limit`; :meth:`close` ends it, in the same thread."""

    #: whether it interrupts the code, or can only say that it is late
    interrupts = True

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.due = time.monotonic() + seconds
        self.expired = False
        self.closed = False

    def close(self) -> bool:
        """Stop the clock. Says whether the time had run out; may be called again."""
        raise NotImplementedError

    def suspend(self) -> None:
        """Interrupt nothing until :meth:`resume`, while other code runs; the time goes on."""

    def resume(self) -> bool:
        """Go on after :meth:`suspend`. Says whether the time has run out meanwhile."""
        self.expired = self.expired or time.monotonic() >= self.due
        return self.expired

    def owns(self, error: BaseException | None) -> bool:
        """Whether `error` is the interrupt of this limit, not of one around it, nor somebody else's."""
        return isinstance(error, TimeIsUp) and error.limit is self

    def check(self) -> None:
        """Raise TimeIsUp in code that goes on though its time is over."""
        if self.expired:
            raise TimeIsUp.of(self)


# ------------------------------------------------------------------------------------------------ coroutines


class _LoopLimit(Limit):
    """Cancels the current asyncio task when the time is over."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        import asyncio  # loaded by whoever runs a coroutine

        loop = asyncio.get_running_loop()
        self._cancelled = False
        self._task: Task[Any] | None = asyncio.current_task()
        self._timer = loop.call_later(seconds, self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self.closed:
            self.expired = self._cancelled = True
            self._task.cancel()

    def suspend(self) -> None:
        self._timer.cancel()

    def resume(self) -> bool:
        if super().resume():
            return True
        import asyncio  # a coroutine runs, so it is loaded

        self._task = asyncio.current_task()  # the consumer may have handed the generator on
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.due - time.monotonic(), self._cancel)
        return False

    def close(self) -> bool:
        task, self._task = self._task, None
        if not self.closed:
            self.closed = True
            self._timer.cancel()
            if self._cancelled and task is not None and hasattr(task, "uncancel"):  # Python 3.11 counts cancellations
                task.uncancel()
        return self.expired

    def owns(self, error: BaseException | None) -> bool:
        if super().owns(error):
            return True
        return self._cancelled and type(error).__name__ == "CancelledError"


# ------------------------------------------------------------------------------------------- the main thread


class _Alarm(Limit):
    """Raises TimeIsUp in the main thread. All that are open share the process's one timer."""

    open: list[_Alarm] = []  # noqa: RUF012 - the main thread's own, outermost first

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        #: it rang during an append and is to ring again
        self.held_up = False
        self._open()

    def _open(self) -> None:
        self._depth = _calls_on(sys._getframe())
        if not self.open:
            signal.signal(signal.SIGALRM, _ring)
        self.open.append(self)
        _set_timer()

    def suspend(self) -> None:
        if self in self.open:
            self.open.remove(self)
            if self.open:
                _set_timer()
            else:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def resume(self) -> bool:
        if super().resume():
            return True
        if _alarm_is_ours():  # else this is another thread than before: it is noticed at the end that it is late
            self._open()
        return False

    def close(self) -> bool:
        self.closed = True
        self.expired = self.expired or self.held_up
        self.suspend()
        return self.expired

    def is_due(self) -> bool:
        """Whether it has to ring now or later, and has not."""
        return not (self.expired or self.closed)

    def is_inside(self, frame: FrameType | None) -> bool:
        """Whether the limited code itself is on the stack, not only the engine around it."""
        return _calls_on(frame) > self._depth


def _calls_on(frame: FrameType | None) -> int:
    """How many calls of user code by blocking runs are on the stack."""
    count = 0
    while frame is not None:
        count += frame.f_code is _CALLING
        frame = frame.f_back
    return count


def _is_appending(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") in _APPENDING:
            return True
        frame = frame.f_back
    return False


def _set_timer() -> None:
    """Let the timer ring for the next of the open alarms."""
    times = [alarm.due for alarm in _Alarm.open if alarm.is_due()]
    if times:
        signal.setitimer(signal.ITIMER_REAL, max(min(times) - time.monotonic(), 1e-6))


def _ring(number: int, frame: FrameType | None) -> None:
    """The signal handler. The outermost limit that is over wins: its interrupt unwinds the inner ones as well."""
    now = time.monotonic()
    over = next((alarm for alarm in _Alarm.open if alarm.is_due() and alarm.due <= now), None)
    if over is None:
        _set_timer()
    elif _is_appending(frame):
        over.held_up = True
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    else:
        over.expired = True
        _set_timer()
        if over.is_inside(frame):
            raise TimeIsUp.of(over)


def _alarm_is_ours() -> bool:
    """Whether this thread can take the alarm: only the main one can, and only if the program does not use it."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return False
    if _Alarm.open:
        return signal.getsignal(signal.SIGALRM) is _ring
    return signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL)[0] == 0


# --------------------------------------------------------------------------------------------- other threads


class _Timer(Limit):
    """Cannot stop the code; says at the time that it is late."""

    interrupts = False

    def __init__(self, seconds: float, on_overrun: Callable[[], None] | None) -> None:
        super().__init__(seconds)
        self._on_overrun = on_overrun
        # guards ``expired`` and ``closed``, so that exactly one of close and the timer comes first
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:  # no thread is to be had: only close() can say that it was late
            self._timer = None

    def _ring(self) -> None:
        with self._lock:
            if self.closed:
                return
            self.expired = True
        if self._on_overrun is not None:
            self._on_overrun()

    def close(self) -> bool:
        with self._lock:
            if not self.closed:
                self.closed = True
                self.expired = self.expired or time.monotonic() >= self.due
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()  # it has recorded the timeout, if it began to
        return self.expired


# ------------------------------------------------------------------------------------------------- to use it


def limit(seconds: float, *, isasync: bool, on_overrun: Callable[[], None] | None = None) -> Limit:
    """Limit what this thread (or, if `isasync`, the current asyncio task) does from now until ``close()``.

    `on_overrun` is called, in a thread of its own and at the moment when the time is over, where the code cannot be
    interrupted; see ``Limit.interrupts``."""
    if isasync:
        return _LoopLimit(seconds)
    return _Alarm(seconds) if _alarm_is_ours() else _Timer(seconds, on_overrun)

# SPDX-License-Identifier: Apache-2.0
"""SIGTERM while a flow runs: the run ends like one that is interrupted by Ctrl-C, then the process ends.

Without this the process would be gone at once: readers see such a run as CRASHED all the same, but no hook of it runs
and what it has open stays open. While the outermost flow runs on the main thread, SIGTERM raises ``TerminationSignal``
in its body; each flow run around it records CRASHED (or CANCELLED, if its cancellation was asked for), innermost first;
then the handler that was there before is put back and the signal is sent once more, so that the process ends by it, as
whoever sent it expects.

On an event loop an exception out of a signal handler would fall into whatever runs at that moment. There the flow's
asyncio task is cancelled instead, and the cancellation that comes out of the body is taken for the signal.

Who handles SIGTERM in a way of his own among our modules (``ext.aws_lambda`` suspends the run) is left alone.

Known hole: a program that handles SIGTERM by ``loop.add_signal_handler`` or in C is left as it is.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from ._waits import current_asyncio_task, loop_is_running
from .exceptions import TerminationSignal

if TYPE_CHECKING:
    from types import FrameType

_OURS = __name__.rpartition(".")[0] + "."
_armed: Termination | None = None  # the main thread's own


class Termination:
    """``with Termination(isasync) as termination:`` SIGTERM ends what runs in the block. Does nothing in other threads
    than the main one, inside of another block, and where the signal is ignored."""

    def __init__(self, isasync: bool) -> None:
        self.arrived: TerminationSignal | None = None
        self._isasync = isasync
        self._task: Any = None
        self._previous: Any = None

    def __enter__(self) -> Termination:
        global _armed
        if _armed is not None or threading.current_thread() is not threading.main_thread():
            return self
        previous = signal.getsignal(signal.SIGTERM)
        knows_better = str(getattr(previous, "__module__", "")).startswith(("asyncio", _OURS))
        if previous is None or previous is signal.SIG_IGN or knows_better:
            return self
        if self._isasync:
            self._task = current_asyncio_task()
        _armed, self._previous = self, previous
        signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        global _armed
        if _armed is not self:
            return
        signal.signal(signal.SIGTERM, self._previous)
        _armed = None
        if self.arrived is not None:
            os.kill(os.getpid(), signal.SIGTERM)
            if error is not self.arrived:
                raise self.arrived from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.arrived = TerminationSignal(number)
        if self._task is None or not loop_is_running():
            raise self.arrived
        self._task.get_loop().call_soon_threadsafe(self._task.cancel)  # which wakes a loop that waits


def meant_by(interrupt: BaseException) -> BaseException:
    """The signal that an interrupt of a coroutine stands for, else the interrupt itself."""
    if _armed is not None and _armed.arrived is not None and type(interrupt).__name__ == "CancelledError":
        return _armed.arrived
    return interrupt

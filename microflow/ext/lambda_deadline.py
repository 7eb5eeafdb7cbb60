# SPDX-License-Identifier: Apache-2.0
"""When a Lambda invocation has to have answered, and how the run is made to leave before that.

The rule: everything that waits in an invocation is bounded by one deadline, known before anything is recorded. At it,
or at SIGTERM, a thread asks for two things until the run has left: that the run be suspended, which it notices where it
would start something, and that it leave a wait of ours, a pause or the delay before a retry, where it stands.

The signal handler runs in the main thread between any two of its bytecodes, also within itself: it takes a lock once.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from ..client.live import Leaving, LiveRun
from ..exceptions import MicroflowException
from ..logging import get_logger
from ..states import Suspended

if TYPE_CHECKING:
    from types import FrameType

    from ..client.orchestration import SyncClient
    from ..states import State

_KEY = "lambda-deadline"
_RETRY = 0.05  # seconds between two requests to suspend


class TimeLeft:
    """How long an invocation may work: until `margin` seconds before its deadline, or without limit.

    TypeError when `context` is neither None nor one that tells how much time remains."""

    def __init__(self, context: Any, margin: float | None) -> None:
        self._end: float | None = None
        if context is None:
            return
        ask = getattr(context, "get_remaining_time_in_millis", None)
        remaining = ask() if callable(ask) else None
        if isinstance(remaining, bool) or not isinstance(remaining, (int, float)):
            raise TypeError(f"the context must be that of AWS Lambda, or None for no deadline; got {context!r}")
        seconds = remaining / 1000
        self._end = time.monotonic() + seconds - (max(1.5, seconds / 20) if margin is None else margin)

    @property
    def seconds(self) -> float | None:
        """What is left, never below 0; None for no limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


def ran_out_of_time(state: State[Any] | None) -> bool:
    """Whether the run was suspended by a deadline, and waits for nothing but another invocation."""
    return state is not None and state.is_paused() and (state.state_details.pause_key or "").startswith(_KEY)


class Deadline:
    """Has the run leave before the invocation's time is up, or when SIGTERM says so. Its one thread has ended when the
    block is left."""

    def __init__(self, live: LiveRun, client: SyncClient, time_left: TimeLeft) -> None:
        self._live = live
        self._client = client  # a setting of the calling thread's may name its home
        self._time_left = time_left
        self._why = "The invocation's time ran out."
        self._over = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="microflow lambda deadline")
        self._previous: Any = None
        self._signal: int | None = None
        live.leaving = self._leaving = Leaving()

    @property
    def passed(self) -> bool:
        """Whether the run was told to leave."""
        return self._leaving.told

    def _watch(self) -> None:
        self._wake.wait(self._time_left.seconds)
        while not self._over.is_set() and not self._suspend():
            # It has not begun yet, or is paused: it is asked again. Who leaves the block says first that it is over.
            self._wake.clear()
            self._wake.wait(0 if self._over.is_set() else _RETRY)

    def _suspend(self) -> bool:
        live = self._live
        state: State[Any] = Suspended(pause_key=f"{_KEY}-{live.epoch}", message=self._why)
        try:
            self._client.suspend_flow_run(live.run_id, state)
        except (MicroflowException, RuntimeError) as refused:
            get_logger("aws_lambda").info("flow run %s is not suspended yet: %s", live.run_id, refused)
            return False
        finally:
            self._leaving.set()  # not before: what leaves first is left as it stands
        return True

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM. In the main thread, which takes no lock of the event's while this can be called, unless a second
        one falls into the first."""
        if self._signal is not None:
            return
        self._signal, self._why = number, "The execution environment ends."
        self._wake.set()

    def pass_on(self) -> None:
        """Call the program's own handler of the signal that arrived, if there is one."""
        if self._signal is not None and callable(self._previous):
            self._previous(self._signal, None)

    def __enter__(self) -> Deadline:
        self._thread.start()
        is_main = threading.current_thread() is threading.main_thread()  # nobody else may
        if is_main and signal.getsignal(signal.SIGTERM) not in (None, signal.SIG_IGN):
            self._previous = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        self._over.set()
        self._wake.set()
        self._thread.join()

# SPDX-License-Identifier: Apache-2.0
"""What people see on their terminal: the progress of a flow run, and text that is safe to print.

Progress is one line that is drawn anew on a terminal, and plain lines when piped.

Fed by the bus: whoever appends a record of the run calls :meth:`Progress.take`, in its own thread.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from types import TracebackType

    from .client.live import LiveRun
    from .events import Record

# how the counts call an ended task run
_ENDED = {"COMPLETED": "done", "FAILED": "failed", "CRASHED": "failed", "CANCELLED": "failed"}

#: seconds between two lines: a terminal's is drawn anew, a pipe's is written once more
_TERMINAL_PAUSE, _PIPE_PAUSE = 0.1, 2.0


def printable(text: str) -> str:
    """Text from a log or a file made safe for a terminal: no control or invisible characters, one line."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class Progress:
    """Counts the task runs of one flow run while the ``with`` block runs it, and says so on `stream`."""

    def __init__(self, live: LiveRun, stream: TextIO) -> None:
        self._live = live
        self._stream = stream
        self._terminal = stream.isatty()
        # guards the counts and the stream: records arrive from many threads
        self._lock = threading.Lock()
        self._where: dict[str, str] = {}
        self._counts = {"done": 0, "running": 0, "failed": 0, "left": 0}
        self._started = self._last = time.monotonic()
        for task_id, history in live.run.tasks.items():  # of an earlier execution; what ended is handed back
            if history.last is None or history.last["type"] not in _ENDED:
                self._where[task_id] = "left"
                self._counts["left"] += 1

    def __enter__(self) -> Progress:
        self._end = self._live.store.bus.subscribe_log(self._live.run_id, self.take)
        return self

    def take(self, record: Record) -> None:
        """Count one record; draw when it is time."""
        task_id = record.data.get("run")
        if task_id is None or record.kind not in ("task", "state"):
            return
        with self._lock:
            if record.kind == "task":
                place = "left"
            else:
                kind = record.data["type"]
                place = _ENDED.get(kind) or ("running" if kind == "RUNNING" else "left")
            before = self._where.pop(task_id, None)
            if before is not None:
                self._counts[before] -= 1
            self._counts[place] += 1
            if place in ("running", "left"):  # an ended run needs no memory of it
                self._where[task_id] = place
            now = time.monotonic()
            if now - self._last >= (_TERMINAL_PAUSE if self._terminal else _PIPE_PAUSE):
                self._last = now
                self._draw()

    def _draw(self) -> None:
        text = ", ".join(f"{count} {name}" for name, count in self._counts.items())
        if self._live.handed_back:
            text += f", {self._live.handed_back} handed back"
        text += f", {time.monotonic() - self._started:.1f} s"
        name = printable(self._live.flow_run.flow_name)
        self._stream.write(f"\r\x1b[K{text}" if self._terminal else f"{name}: {text}\n")
        self._stream.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        with self._lock:
            self._draw()
            if self._terminal:
                self._stream.write("\n")

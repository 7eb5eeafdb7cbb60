# SPDX-License-Identifier: Apache-2.0
"""What the tests of workers share: a worker in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support import PATIENCE

ROOT = Path(__file__).resolve().parent.parent


class WorkerProcess:
    """A worker that was begun from the command line and serves what is named ``module:name``. Kills it at the end of
    a ``with`` block."""

    def __init__(self, *targets: str, limit: int | str = 10, tracebacks: bool = False) -> None:
        self._tracebacks = tracebacks  # of what its runs raise, which is logged
        words = [sys.executable, "-m", "microflow", "serve", *targets, "--limit", str(limit)]
        self.process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE)
        self.pid = self.process.pid

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and give the exit status once the worker has ended."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """The exit status once the worker has ended, without an error of its own."""
        _, said = self.process.communicate(timeout=PATIENCE)
        assert self._tracebacks or b"Traceback" not in said, said.decode()
        assert not re.search(rb"ERROR +\| microflow\.worker", said), said.decode()
        return self.process.returncode

    def close(self) -> None:
        """Kill it, if it is still there."""
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

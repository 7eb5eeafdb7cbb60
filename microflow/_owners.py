# SPDX-License-Identifier: Apache-2.0
"""Who owns the runs of a folder, and whether the owner lives.

A claim record names its owner by a *token*: 128 random bits, drawn when the process takes its first claim
(not earlier: a process may be a clone of another's memory). The process holds the lock on the file of
that name as long as it owns any run. The lock ends when the process ends, however it ends; so whoever can
lock the file knows that the owner is dead. No clock, no heartbeat and no process id is asked. This is
about liveness only: that a claim which was taken over is worth nothing is the claim number's work (log.py).

Known holes. Without ``fcntl`` (Windows, Pyodide) only the tokens of this very object count as alive. A process that is
killed leaves its file behind, until the next process that owns a run sweeps it away.
"""

from __future__ import annotations

import os
import re
import threading

from . import _files
from ._media import storage_error

_TOKEN = r"[0-9a-f]{32}"


class Owners:
    """The tokens of one folder, and that of this process. A child made by fork makes its own: see ``stores.py``."""

    def __init__(self, folder: str, *, durable: bool) -> None:
        self._folder = folder
        self._durable = durable
        self._mutex = threading.Lock()  # guards the fields below
        self.token: str | None = None
        self.descriptor = -1
        self._owned = 0

    def own(self) -> str:
        """The token of this process, which is alive from now on. Call :meth:`disown` as often as this."""
        with self._mutex:
            if self.token is None:
                try:
                    _files.make_private_folder(self._folder, durable=self._durable)
                    self._sweep()
                    self.token, self.descriptor = self._draw()
                except OSError as error:
                    raise storage_error(error, self._folder) from error
            self._owned += 1
            return self.token

    def _draw(self) -> tuple[str, int]:
        while True:
            token = os.urandom(16).hex()
            path = os.path.join(self._folder, token)
            descriptor = _files.open_new(path)
            ours = False
            try:
                # Between the two lines above and the lock somebody may have taken the file for a dead owner's,
                # and be about to remove it.
                ours = _files.try_lock(descriptor) and _files.stat_open(descriptor).st_nlink == 1
            finally:
                if not ours:
                    _files.close(descriptor)
                    self._unlink(path)
            if ours:
                return token, descriptor

    def _sweep(self) -> None:
        """Remove the files of dead owners: a token without a file is dead just the same."""
        for name in _files.list_folder(self._folder):
            if re.fullmatch(_TOKEN, name) and not self._is_locked(name):
                self._unlink(os.path.join(self._folder, name))

    def _unlink(self, path: str) -> None:
        try:
            _files.unlink(path)
        except FileNotFoundError:
            pass  # somebody else swept

    def disown(self, token: str) -> None:
        """One run less is owned under this token. Without effect for the token of another process."""
        with self._mutex:
            if token != self.token:
                return  # the parent process's, from before a fork
            self._owned -= 1
            if self._owned:
                return
            descriptor, self.token, self.descriptor = self.descriptor, None, -1
            try:
                self._unlink(os.path.join(self._folder, token))
            except OSError as error:
                raise storage_error(error, self._folder) from error
            finally:
                _files.close(descriptor)

    def is_alive(self, token: str) -> bool:
        """Whether the process that drew this token still owns runs."""
        if token == self.token:
            return True
        if not re.fullmatch(_TOKEN, token):
            return False
        try:
            return self._is_locked(token)
        except OSError as error:
            raise storage_error(error, self._folder) from error

    def _is_locked(self, token: str) -> bool:
        try:
            descriptor = _files.open_log(os.path.join(self._folder, token), writable=False)
        except FileNotFoundError:
            return False
        try:
            # a shared lock: two who look at the same time must not take each other for the owner
            return not _files.try_lock(descriptor, shared=True)
        finally:
            _files.close(descriptor)

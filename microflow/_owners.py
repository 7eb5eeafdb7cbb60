# SPDX-License-Identifier: Apache-2.0
"""Who owns the runs of a folder, and whether the owner lives.

A claim record names its owner by a *token*: 128 random bits, drawn when the process takes its first claim
(not earlier: a process may be a clone of another's memory). The process holds the lock on the file of
that name as long as it owns any run. The lock ends when the process ends, however it ends; so whoever can
lock the file knows that the owner is dead. No clock, no heartbeat and no process id is asked. This is
about liveness only: that a claim which was taken over is worth nothing is the claim number's work (log.py).

Between two runs of a process the file and its descriptor are kept, without the lock: making and removing a file for
each run takes 0.1 ms, and ten times that on a file system that passes over what was removed a moment ago (ext4).
Without the lock it is a dead owner's like any other. Whoever sweeps removes it, under a shared lock of its own, and the
next run draws a new token. A token is not used again when a claim stands under it that was not released.

Known holes. Without ``fcntl`` (Windows, Pyodide) only the tokens of this very object count as alive. A process that is
killed leaves its file behind, until the next process that owns a run sweeps it away; so does one that ends by
``os._exit``.
"""

from __future__ import annotations

import os
import re
import threading
import weakref

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
        self._spent = False  # a run was left under the present token without a release
        self._kept: weakref.finalize[..., Owners] | None = None  # removes the file that is kept, when it is called
        self._idle: tuple[str, int] | None = None  # token and descriptor of that file

    def own(self) -> str:
        """The token of this process, which is alive from now on. Call :meth:`disown` as often as this."""
        with self._mutex:
            if self.token is None:
                try:
                    self.token, self.descriptor = self._take_up() or self._begin()
                except OSError as error:
                    raise storage_error(error, self._folder) from error
            self._owned += 1
            return self.token

    def _begin(self) -> tuple[str, int]:
        _files.make_private_folder(self._folder, durable=self._durable)
        self._sweep()
        return self._draw()

    def _take_up(self) -> tuple[str, int] | None:
        """The token that this process had before, and its file, if nobody has swept it away."""
        kept, idle, self._kept, self._idle = self._kept, self._idle, None, None
        if kept is None or idle is None:
            return None
        # in this order: who sweeps holds a lock until the file has no name
        if _files.try_lock(idle[1]) and _files.stat_open(idle[1]).st_nlink == 1:
            kept.detach()
            return idle
        kept()
        return None

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
                    _unlink(path)
            if ours:
                return token, descriptor

    def _sweep(self) -> None:
        """Remove the files of dead owners: a token without a file is dead just the same."""
        for name in _files.list_folder(self._folder):
            if re.fullmatch(_TOKEN, name):
                self._is_locked(name, sweep=True)

    def disown(self, token: str, *, released: bool = False) -> None:
        """One run less is owned under this token; `released` says that its log says so. Without effect for the token of
        another process."""
        with self._mutex:
            if token != self.token:
                return  # the parent process's, from before a fork
            self._owned -= 1
            self._spent = self._spent or not released
            if self._owned:
                return
            descriptor, self.token, self.descriptor = self.descriptor, None, -1
            spent, self._spent = self._spent, False
            path = os.path.join(self._folder, token)
            try:
                if spent:
                    _remove(path, descriptor)
                else:
                    _files.unlock(descriptor)
                    self._idle = token, descriptor
                    self._kept = weakref.finalize(self, _forget, path, descriptor, os.getpid())
            except OSError as error:
                raise storage_error(error, self._folder) from error

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

    def _is_locked(self, token: str, *, sweep: bool = False) -> bool:
        """Whether somebody holds the lock; with `sweep` the file is removed if not, before anybody else can lock it."""
        path = os.path.join(self._folder, token)
        try:
            descriptor = _files.open_log(path, writable=False)
        except FileNotFoundError:
            return False
        try:
            # a shared lock: two who look at the same time must not take each other for the owner
            if not _files.try_lock(descriptor, shared=True):
                return True
            if sweep:
                _unlink(path)
            return False
        finally:
            _files.close(descriptor)


def _remove(path: str, descriptor: int) -> None:
    try:
        _unlink(path)
    finally:
        _files.close(descriptor)


def _forget(path: str, descriptor: int, pid: int) -> None:
    """Remove the file that is kept: nobody needs it any more. In a child made by fork it is the parent's."""
    if pid == os.getpid():
        try:
            _remove(path, descriptor)
        except OSError:
            pass  # the home may be gone, or on a disk that cannot be written now: it is swept by others


def _unlink(path: str) -> None:
    try:
        _files.unlink(path)
    except FileNotFoundError:
        pass  # somebody else swept

# SPDX-License-Identifier: Apache-2.0
"""What the bytes of a log stand on: a file, or memory. Bytes only: nothing here knows what a line is.

``log.Log`` runs the append protocol over one of these. Both have the same methods, called under the mutex
of the log; only :meth:`flush` is called without it. Errors of the operating system pass as OSError;
``explain`` turns one into the StorageError that names the file.
"""

from __future__ import annotations

import errno
import os
import re
import time

from . import _files
from .exceptions import IndeterminateAppend, NoSpace, ObjectNotFound, StorageError

_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
RUN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_LOOK_AGAIN = 1.0  # seconds between two looks whether the file still has its name


def storage_error(error: OSError, path: str) -> StorageError:
    """The error to raise for what the operating system refused; raise it ``from`` the OSError."""
    reason = f"{path}: {error.strerror or error}"
    if error.errno in _FULL:
        return NoSpace(f"{reason}. Nothing was recorded; free space and try again")
    return StorageError(reason)


def remove_file(path: str) -> bool:
    """Remove a file; whether it was there. StorageError when it cannot be removed."""
    try:
        _files.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, path) from error
    return True


def check_run_id(run_id: object) -> str:
    """No name from outside gets into a path."""
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        raise ValueError(f"{run_id!r} is no run id: a UUID in lower case, 36 characters")
    return run_id


class FileMedium:
    """The bytes of a log in a file, which is opened when it is first needed."""

    def __init__(self, path: str) -> None:
        self.location = path
        self._pid = os.getpid()
        self._descriptor = -1  # none
        self._writable = False
        self._next_look = 0.0
        self._placed = False  # its name and its first bytes were synced through this object

    def ready(self, *, writable: bool, create: bool = False) -> bool:
        """Open the file unless it is open; True if it was opened: it may be another one than before."""
        if self._descriptor >= 0 and (self._writable or not writable):
            return False
        descriptor = self._create_or_open() if create else _files.open_log(self.location, writable=writable)
        self.rest()
        self._descriptor, self._writable = descriptor, writable
        return True

    def _create_or_open(self) -> int:
        try:
            return _files.open_new(self.location)
        except FileExistsError:  # others may be creating the run as well: the first line 0 wins
            return _files.open_log(self.location, writable=True)

    def is_gone(self) -> bool:
        """Whether the open file lost its name: deleted, or replaced by another."""
        self._next_look = time.monotonic() + _LOOK_AGAIN
        return _files.stat_open(self._descriptor).st_nlink == 0

    def can_append(self) -> bool:
        """Whether the file is open for that, and it is not time to ask :meth:`is_gone`, too dear for each append."""
        return self._writable and self._descriptor >= 0 and time.monotonic() < self._next_look

    def size(self) -> int:
        return _files.size(self._descriptor)

    def fetch(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on: `length` of them, or fewer where the file ends."""
        data = _files.read_at(self._descriptor, length, offset)
        while len(data) < length:  # the call may fall short; only an empty answer is the end
            more = _files.read_at(self._descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def lock(self) -> None:
        _files.lock(self._descriptor)

    def unlock(self) -> None:
        try:
            _files.unlock(self._descriptor)
        except OSError:
            self.rest()  # closing the file gives the lock back as well

    def write(self, data: bytes, end: int) -> None:
        """Write all of `data` behind `end`, the end of the file, in one call; or leave the file as it was."""
        try:
            written = _files.write(self._descriptor, data)
        except OSError:
            self._undo(end)
            raise
        if written != len(data):
            self._undo(end)
            raise NoSpace(
                f"{self.location}: only {written} of {len(data)} bytes could be written, and were taken back. "
                f"Nothing was recorded; free space and try again"
            )

    def _undo(self, end: int) -> None:
        try:
            if _files.size(self._descriptor) != end:
                _files.truncate(self._descriptor, end)
        except OSError as error:
            raise IndeterminateAppend(
                f"{self.location}: a write failed and could not be taken back ({error.strerror or error}). "
                f"Open the log anew and look whether the records are there"
            ) from error

    def second_descriptor(self) -> int:
        """What :meth:`flush` may use without the mutex, while others close or open the file."""
        return _files.duplicate(self._descriptor)

    def flush(self, descriptor: int) -> None:
        """Return when the file is on the disk; the first time with its name, whoever created it."""
        try:
            if self._placed:
                _files.sync_data(descriptor)
            else:
                _files.sync_full(descriptor)
                _files.sync_folder(os.path.dirname(self.location))
                self._placed = True
        finally:
            _files.close(descriptor)

    def rest(self) -> None:
        """Close the file until it is needed again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            _files.close(descriptor)

    def __del__(self) -> None:  # a store that is dropped closes its files; those of a fork's parent are closed already
        if self._descriptor >= 0 and self._pid == os.getpid():
            self.rest()

    def explain(self, error: OSError) -> Exception:
        if isinstance(error, FileNotFoundError):
            return ObjectNotFound(f"there is no log {self.location}")
        return storage_error(error, self.location)


class MemoryMedium:
    """The bytes of a log in memory: the same protocol, with nothing that could fail."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.data = bytearray()

    def ready(self, *, writable: bool, create: bool = False) -> bool:
        return False

    def is_gone(self) -> bool:
        return False

    def can_append(self) -> bool:
        return True

    def size(self) -> int:
        return len(self.data)

    def fetch(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def lock(self) -> None: ...

    def unlock(self) -> None: ...

    def write(self, data: bytes, end: int) -> None:
        self.data += data

    def second_descriptor(self) -> int:
        return -1

    def flush(self, descriptor: int) -> None: ...

    def rest(self) -> None: ...

    def explain(self, error: OSError) -> Exception:
        raise AssertionError("memory has no operating system") from error

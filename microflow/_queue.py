# SPDX-License-Identifier: Apache-2.0
"""What waits to be claimed: the ids of runs that any process may take, the longest waiting first.

An entry says "look at this run", and nothing else: who runs it is decided by the claim in its log. It is put
after the run was recorded, so that it never names what is not there, and is to stand until the run has ended:
then a run whose process died is found again by whoever looks next. An entry that stands too long does no harm.

Known hole: a process that dies between recording a run and putting its entry leaves a run that nobody looks for.
Whoever made it was not told that it was made; a flow that is run again makes the same call, which puts the entry.
"""

from __future__ import annotations

import os
import time

from . import _files
from ._media import RUN_ID, check_run_id, remove_file, storage_error


class FileQueue:
    """A folder with one empty file for each entry. Any number of processes may use it at once."""

    def __init__(self, folder: str, *, durable: bool) -> None:
        self._folder = folder
        self._durable = durable

    def put(self, run_id: str) -> None:
        """Have the run looked at. Twice is once."""
        path = os.path.join(self._folder, check_run_id(run_id))
        try:
            _files.make_private_folder(self._folder, durable=self._durable)
            try:
                _files.close(_files.open_new(path))
            except FileExistsError:
                return
            if self._durable:
                _files.sync_folder(self._folder)
        except OSError as error:
            raise storage_error(error, path) from error

    def stamp(self) -> int:
        """The moment of the last change, in nanoseconds of the file system's clock; 0 before there was any."""
        try:
            return _files.stat_path(self._folder).st_mtime_ns
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise storage_error(error, self._folder) from error

    def names(self) -> set[str]:
        """The ids of all entries."""
        try:
            return {name for name in _files.list_folder(self._folder) if RUN_ID.fullmatch(name)}
        except OSError as error:
            raise storage_error(error, self._folder) from error

    def list(self) -> list[str]:
        """The ids of all entries, the longest waiting first."""
        try:
            names = [name for name in _files.list_folder(self._folder) if RUN_ID.fullmatch(name)]
        except OSError as error:
            raise storage_error(error, self._folder) from error
        return sorted(names, key=lambda name: (self._since(name), name))

    def _since(self, name: str) -> int:
        try:
            return _files.stat_path(os.path.join(self._folder, name)).st_mtime_ns
        except OSError:  # somebody took it meanwhile
            return 0

    def take(self, run_id: str) -> bool:
        """Remove an entry; whether it was there."""
        return remove_file(os.path.join(self._folder, check_run_id(run_id)))


class MemoryQueue:
    """The same in this process. The operations of a dict are atomic, so no lock is needed."""

    def __init__(self) -> None:
        self._entries: dict[str, None] = {}

    def put(self, run_id: str) -> None:
        """Have the run looked at. Twice is once."""
        self._entries.setdefault(check_run_id(run_id))

    def stamp(self) -> int:
        """The moment of the last change: always now, since looking costs nothing."""
        return time.time_ns()

    def names(self) -> set[str]:
        """The ids of all entries."""
        return set(self._entries)

    def list(self) -> list[str]:
        """The ids of all entries, the longest waiting first."""
        return list(self._entries)

    def take(self, run_id: str) -> bool:
        """Remove an entry; whether it was there."""
        missing = object()
        return self._entries.pop(check_run_id(run_id), missing) is not missing

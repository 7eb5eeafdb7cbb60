# SPDX-License-Identifier: Apache-2.0
"""Small JSON documents under ids: what a store keeps beside its logs, and what is replaced as a whole.

A document is written under another name, synced (durability ``disk``) and renamed: a reader sees the old one or the
new one, and a process that dies while it writes leaves the old one, and perhaps a hidden file that nobody reads.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import _files
from ._media import RUN_ID, check_run_id, remove_file, storage_error
from .exceptions import NoSpace

if TYPE_CHECKING:
    from typing import Protocol

    class Documents(Protocol):
        """What every store can do with them."""

        def put(self, name: str, data: bytes) -> None: ...
        def get(self, name: str) -> bytes | None: ...
        def list(self) -> list[str]: ...
        def remove(self, name: str) -> bool: ...


#: bytes that a document may have
LARGEST = 1024 * 1024


class FileDocuments:
    """A folder with one file for each document. Any number of processes may use it at once."""

    def __init__(self, folder: str, *, durable: bool) -> None:
        self._folder = folder
        self._durable = durable

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, check_run_id(name) + ".json")

    def put(self, name: str, data: bytes) -> None:
        """Write a document, in place of the one that has this id."""
        path = self._path(name)
        temporary = os.path.join(self._folder, f".{os.urandom(16).hex()}")
        try:
            _files.make_private_folder(self._folder, durable=self._durable)
            self._write(temporary, data)
            try:
                _files.replace(temporary, path)
            except OSError:
                _files.unlink(temporary)
                raise
            if self._durable:
                _files.sync_folder(self._folder)
        except OSError as error:
            raise storage_error(error, path) from error

    def _write(self, path: str, data: bytes) -> None:
        descriptor = _files.open_new(path)
        whole = False
        try:
            if _files.write(descriptor, data) != len(data):
                raise NoSpace(f"{path}: not all of the {len(data)} bytes could be written; free space and try again")
            if self._durable:
                _files.sync_full(descriptor)
            whole = True
        finally:
            _files.close(descriptor)
            if not whole:
                _files.unlink(path)

    def get(self, name: str) -> bytes | None:
        """The document of that id; None when there is none. At most one byte more than :data:`LARGEST` is read."""
        path = self._path(name)
        try:
            descriptor = _files.open_log(path, writable=False)
            try:
                data = b""
                while len(data) <= LARGEST and (part := _files.read_at(descriptor, LARGEST + 1 - len(data), len(data))):
                    data += part
                return data
            finally:
                _files.close(descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, path) from error

    def list(self) -> list[str]:
        """The ids of all documents."""
        try:
            names = _files.list_folder(self._folder)
        except OSError as error:
            raise storage_error(error, self._folder) from error
        return sorted(name[:36] for name in names if name[36:] == ".json" and RUN_ID.fullmatch(name[:36]))

    def remove(self, name: str) -> bool:
        """Remove a document; whether it was there."""
        return remove_file(self._path(name))


class MemoryDocuments:
    """The same in this process. The operations of a dict are atomic, so no lock is needed."""

    def __init__(self) -> None:
        self._documents: dict[str, bytes] = {}

    def put(self, name: str, data: bytes) -> None:
        """Write a document, in place of the one that has this id."""
        self._documents[check_run_id(name)] = data

    def get(self, name: str) -> bytes | None:
        """The document of that id; None when there is none."""
        return self._documents.get(check_run_id(name))

    def list(self) -> list[str]:
        """The ids of all documents."""
        return sorted(self._documents)

    def remove(self, name: str) -> bool:
        """Remove a document; whether it was there."""
        return self._documents.pop(check_run_id(name), None) is not None

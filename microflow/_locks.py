# SPDX-License-Identifier: Apache-2.0
"""Locks on keys, held by a *holder* (any text): in this process, or between processes that share a folder.

A lock is a lease, not a mutex: user code runs while it is held, another thread may give it back, and the same holder
gets it again at once. ``hold_timeout`` ends it by itself.

In memory a waiter sleeps until the lock is given back or its time is over. On files nobody can wake another process:
a waiter looks every 1 to 20 ms.

A lock on a file
================

Goal: a lock whose holder died is free at once, whatever killed it; one whose time is over can be taken from a
holder that lives.

What does not work: a file that exists while the lock is held (a killed holder leaves it behind); ``flock`` for as long
as the lock is held (nobody could take it when its time is over); process ids and heartbeats (used again, late).

The rule: ``<key>.lock`` is a record ``{"holder", "owner", "until"}``, read and changed under a short ``flock`` on that
file. ``owner`` is a token whose liveness is a lock of its own (``owners/<token>``, see ``_owners``), which ends with
the process. A record counts while its owner lives and its time is not over. Who gives a lock back removes the file,
under its ``flock``; who then gets the ``flock`` of a removed file opens the name again.

Known holes: ``until`` is wall clock, because no other clock is shared between processes. Without ``fcntl`` the locks
hold inside one process only.
"""

from __future__ import annotations

import enum
import errno
import json
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from . import _files
from ._media import storage_error
from ._waits import AsyncioWaits, BlockingWaits, completion_of, finish, slot_given_back
from .stores import FileStore

if TYPE_CHECKING:
    from collections.abc import Callable


class IsolationLevel(str, enum.Enum):
    """What transactions on the same key see of each other; the value is the name."""

    #: the last commit wins
    READ_COMMITTED = "READ_COMMITTED"
    #: one after the other: the key is locked from begin to end
    SERIALIZABLE = "SERIALIZABLE"


class LockManager(Protocol):
    """What is asked of a lock manager. Times are seconds; None waits for ever, 0 looks once."""

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Lock `key`; says whether that worked in time."""
        ...

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """The same without blocking the loop."""
        ...

    def release_lock(self, key: str, holder: str) -> None:
        """Give the lock back; ValueError for who does not hold it."""

    def is_locked(self, key: str) -> bool:
        """Whether anybody holds the lock now."""
        ...

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Whether `holder` holds the lock now."""
        ...

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody holds the lock; says whether that came in time. It is not taken."""
        ...

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """The same without blocking the loop."""
        ...


_mutex = threading.Lock()  # guards the making of managers


class _Blocking(BlockingWaits):
    async def wait_at_most(self, turn: _Turn, seconds: float | None) -> None:
        with slot_given_back():
            turn.wait(seconds)


class _Asyncio(AsyncioWaits):
    async def wait_at_most(self, turn: _Turn, seconds: float | None) -> None:
        import asyncio  # the caller is a coroutine on a loop

        try:
            await asyncio.wait_for(completion_of(turn), seconds)
        except asyncio.TimeoutError:
            pass


_BLOCKING, _ASYNCIO = _Blocking(), _Asyncio()


class _LockManager:
    """What the two have in common: trying until it works, written once for both colours."""

    def _try(self, key: str, holder: str | None, hold: float | None) -> tuple[bool, _Turn | None, float]:
        """Take the lock for `holder`, or only look with None. Whether it was free; if not, what to wait for (None:
        only time can tell), and for how many seconds at most."""
        raise NotImplementedError

    async def _wait(
        self, waits: _Blocking | _Asyncio, key: str, holder: str | None, patience: float | None, hold: float | None
    ) -> bool:
        deadline = None if patience is None else time.monotonic() + patience
        tries = 0
        while True:
            worked, turn, pause = self._try(key, holder, hold)
            if worked:
                return True
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if left <= 0:
                return False
            tries += 1
            if turn is None:
                await waits.sleep(min(left, 0.001 * min(tries, 20)))
            else:
                await waits.wait_at_most(turn, None if left == float("inf") else left)

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Lock `key` for `holder`, who may hold it already; says whether that worked within `acquire_timeout` seconds
        (None: however long it takes; 0: look once). After `hold_timeout` seconds the lock is free by itself."""
        return finish(self._wait(_BLOCKING, key, holder, acquire_timeout, hold_timeout))

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """:meth:`acquire_lock` that does not block the loop."""
        return await self._wait(_ASYNCIO, key, holder, acquire_timeout, hold_timeout)

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody holds the lock; says whether that came within `timeout` seconds. It is not taken."""
        return finish(self._wait(_BLOCKING, key, None, timeout, None))

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """:meth:`wait_for_lock` that does not block the loop."""
        return await self._wait(_ASYNCIO, key, None, timeout, None)


def _not_held(key: str, holder: str, actual: str | None) -> ValueError:
    state = "nobody holds it" if actual is None else f"it is held by {actual!r}"
    return ValueError(f"{holder!r} cannot release the lock on {key!r}: {state}")


# ----------------------------------------------------------------------------------------------- in memory


class _Turn:
    """The end of one hold of a lock, for those who wait for it."""

    __slots__ = ("_callbacks", "_event")

    def __init__(self) -> None:
        self._event = threading.Event()
        self._callbacks: list[Callable[[Any], object]] = []

    def wait(self, timeout: float | None = None) -> object:
        return self._event.wait(timeout)

    def add_done_callback(self, fn: Callable[[Any], object], /) -> object:
        self._callbacks.append(fn)
        if self._event.is_set():  # set after the look of the one who ends it: calling twice does no harm
            fn(self)
        return None

    def end(self) -> None:
        self._event.set()
        for fn in list(self._callbacks):
            fn(self)


class _Held:
    __slots__ = ("holder", "turn", "until")

    def __init__(self, holder: str, until: float) -> None:
        self.holder = holder
        self.until = until  # by the monotonic clock
        self.turn = _Turn()


class MemoryLockManager(_LockManager):
    """Locks between the threads and coroutines of this process. There is one: every call of the class gives it."""

    _only: MemoryLockManager | None = None
    _mutex: threading.Lock  # guards the table; never held while anybody waits
    _held: dict[str, _Held]

    def __new__(cls) -> MemoryLockManager:
        with _mutex:
            if MemoryLockManager._only is None:
                only = super().__new__(cls)
                only._reset()
                MemoryLockManager._only = only
            return MemoryLockManager._only

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        self._held = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return MemoryLockManager, ()  # a copy is the same one

    def _try(self, key: str, holder: str | None, hold: float | None) -> tuple[bool, _Turn | None, float]:
        now = time.monotonic()
        with self._mutex:
            held = self._held.get(key)
            if held is not None and now < held.until:
                if held.holder != holder:
                    return False, held.turn, held.until - now
                held.until = _end(now, hold)
            elif holder is not None:
                self._held[key] = _Held(holder, _end(now, hold))
                if held is not None:
                    held.turn.end()
        return True, None, 0.0

    def _holder(self, key: str) -> str | None:
        held = self._held.get(key)
        return held.holder if held is not None and time.monotonic() < held.until else None

    def release_lock(self, key: str, holder: str) -> None:
        """Give the lock back; ValueError for who does not hold it, also if its time is over."""
        with self._mutex:
            actual = self._holder(key)
            if actual != holder:
                raise _not_held(key, holder, actual)
            held = self._held.pop(key)
        held.turn.end()

    def is_locked(self, key: str) -> bool:
        """Whether anybody holds the lock now."""
        return self._holder(key) is not None

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Whether `holder` holds the lock now."""
        return self._holder(key) == holder


def _end(now: float, hold: float | None) -> float:
    return float("inf") if hold is None else now + hold


def _after_fork_in_child() -> None:
    global _mutex
    _mutex = threading.Lock()
    if MemoryLockManager._only is not None:
        MemoryLockManager._only._reset()  # the holders are threads that do not exist here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# ------------------------------------------------------------------------------------------------ on files

_GLANCE = 0.0005  # seconds to wait while somebody else reads or writes a record, which takes microseconds

# Managers of one folder share what tells that this process lives: a copy can give back what the first one took.
_stores: WeakValueDictionary[str, FileStore] = WeakValueDictionary()

_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


class FileSystemLockManager(_LockManager):
    """Locks between processes that share a folder. The lock of a process that died is free at once."""

    def __init__(self, lock_files_directory: str | os.PathLike[str]) -> None:
        self.lock_files_directory = os.path.abspath(os.path.expanduser(os.fspath(lock_files_directory)))
        with _mutex:
            store = _stores.get(self.lock_files_directory) or FileStore(self.lock_files_directory)
            self._store = _stores[self.lock_files_directory] = store

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return FileSystemLockManager, (self.lock_files_directory,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileSystemLockManager) and self.lock_files_directory == other.lock_files_directory

    def __hash__(self) -> int:
        return hash(self.lock_files_directory)

    def __repr__(self) -> str:
        return f"FileSystemLockManager({self.lock_files_directory!r})"

    def _path(self, key: str) -> str:
        """The file of a key. No name from outside gets into a path, and no two keys have one file."""
        if not _PLAIN_NAME.fullmatch(key):
            from hashlib import sha256  # most keys are plain, and this takes milliseconds to import

            key = "=" + sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return os.path.join(self.lock_files_directory, f"{key}.lock")

    def _locked(self, path: str, *, create: bool) -> int | None:
        """The file of a key, opened and locked; None if it is not there or somebody else is at it."""
        try:
            descriptor = _files.open_log(path, writable=True)
        except FileNotFoundError:
            if not create:
                return None
            _files.make_private_folder(self.lock_files_directory)
            try:
                descriptor = _files.open_new(path)
            except FileExistsError:
                return None
        if _files.try_lock(descriptor) and _files.stat_open(descriptor).st_nlink:
            return descriptor
        _files.close(descriptor)
        return None

    def _record(self, descriptor: int) -> dict[str, Any]:
        """The record in a file, if it counts; what is no record was left by a process that died writing it."""
        try:
            record: Any = json.loads(_files.read_at(descriptor, 65536, 0))
            counts = time.time() < record["until"] if record["until"] is not None else True
            if counts and isinstance(record["holder"], str) and self._store.is_alive(record["owner"]):
                return dict(record)
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        return {}

    def _try(self, key: str, holder: str | None, hold: float | None) -> tuple[bool, _Turn | None, float]:
        path = self._path(key)
        if holder is None:
            return not self._holder(key), None, float("inf")
        try:
            descriptor = self._locked(path, create=True)
            if descriptor is None:
                return False, None, float("inf")
            try:
                record = self._record(descriptor)
                if record and record["holder"] != holder:
                    return False, None, float("inf")
                self._write(descriptor, holder, hold, record.get("owner"))
            finally:
                _files.close(descriptor)
        except OSError as error:
            raise storage_error(error, path) from error
        return True, None, 0.0

    def _write(self, descriptor: int, holder: str, hold: float | None, before: str | None) -> None:
        """Precedes the answer that the lock is held. Dying before it, nobody holds the lock; after it, likewise,
        because the owner's own lock is gone with it."""
        until, owner = None if hold is None else time.time() + hold, self._store.own()
        data = json.dumps({"holder": holder, "owner": owner, "until": until}).encode("ascii")
        whole = False
        try:
            _files.truncate(descriptor, 0)
            whole = _files.write(descriptor, data) == len(data)
        finally:
            if owner == before or not whole:
                self._store.disown(owner)  # counted once for each lock, however often its holder takes it
        if not whole:
            raise OSError(errno.ENOSPC, "only a part of the record could be written")

    def _holder(self, key: str) -> str | None:
        path = self._path(key)
        while True:
            try:
                descriptor = _files.open_log(path, writable=False)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise storage_error(error, path) from error
            try:
                if _files.try_lock(descriptor, shared=True):
                    holder: str | None = self._record(descriptor).get("holder")
                    return holder
            finally:
                _files.close(descriptor)
            time.sleep(_GLANCE)

    def release_lock(self, key: str, holder: str) -> None:
        """Give the lock back; ValueError for who does not hold it, also if its time is over."""
        path = self._path(key)
        try:
            while (descriptor := self._locked(path, create=False)) is None:
                if (actual := self._holder(key)) != holder:
                    raise _not_held(key, holder, actual)
                time.sleep(_GLANCE)
            try:
                record = self._record(descriptor)
                if record.get("holder") != holder:
                    raise _not_held(key, holder, record.get("holder"))
                _files.unlink(path)
                self._store.disown(record["owner"])
            finally:
                _files.close(descriptor)
        except OSError as error:
            raise storage_error(error, path) from error

    def is_locked(self, key: str) -> bool:
        """Whether anybody holds the lock now."""
        return self._holder(key) is not None

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Whether `holder` holds the lock now."""
        return self._holder(key) == holder

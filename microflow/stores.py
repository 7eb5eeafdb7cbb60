# SPDX-License-Identifier: Apache-2.0
"""Stores: where logs live. :class:`FileStore` keeps them in a folder, :class:`MemoryStore` in this process.

:class:`Store` says what every store can do; nothing outside of this module may know that a log is a file.
Who wants to keep logs elsewhere derives from ``KeyStore`` (key_stores.py), which asks for five small methods.

A folder of runs::

    <root>/runs/<run id>.jsonl              one log per run; log.py has the grammar
    <root>/runs/<run id>.results/<sha256>   values too large for the log, named by what they hold
    <root>/owners/<token>                   one empty file per process that owns runs (_owners.py)
    <root>/queue/<run id>                   one empty file per run that any process may claim
    <root>/deployments/<id>.json            what runs of a flow are made from, without its code

A child made by fork closes the parent's files, and starts with no token and no open log. It may use the store as any
other process may.

Results
-------
A result is written under another name, synced (durability ``disk``), and renamed; only then may a record
name it. So a name in the log is a file on the disk: after a kill, and with ``disk`` after a power cut too.

Known holes
-----------
Without ``fcntl`` (Windows, Pyodide) only the tokens of this very store count as alive. Durability
``process`` does not survive a power cut. A process that is killed may leave a result under its temporary name, until
the run is deleted.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from . import _files
from ._documents import FileDocuments, MemoryDocuments
from ._follower import Follower
from ._media import RUN_ID, FileMedium, MemoryMedium, check_run_id, remove_file, storage_error
from ._owners import Owners
from ._queue import FileQueue, MemoryQueue
from .events import Bus
from .exceptions import ConfigurationError, MissingResult, NoSpace, ObjectNotFound
from .log import Log, Reading

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any, Concatenate, Literal

    from ._documents import Documents
    from .key_stores import KeyQueue

    Body = dict[str, Any]
    RunIds = list[str]  # inside the classes below, `list` is a method

P = ParamSpec("P")
T = TypeVar("T")

_RESULT_NAME = r"[0-9a-f]{64}"

MOST_OPEN_LOGS = 100  # beyond it, a store closes logs that are not in use; many systems allow 256 open files


class Store:
    """What every store can do. Any thread may call any method.

    Attributes: ``bus`` delivers what is appended; whoever appends publishes it there after the append, the
    store itself only what other processes appended to a followed run. ``location`` names the store in messages,
    ``durability`` says whether :meth:`sync` has anything to wait for ("disk"). ``queue`` names the runs that
    any process may claim; ``deployments`` are what runs are made from.
    """

    bus: Bus
    location: str
    durability: str = "process"
    queue: FileQueue | MemoryQueue | KeyQueue
    deployments: Documents

    @property
    def private(self) -> bool:
        """Whether nobody but this user can have written what stands in the store."""
        raise NotImplementedError

    # -- logs

    def append(
        self, run_id: str, bodies: list[Body], *, expect: int, epoch: int | None = None, time_us: int | None = None
    ) -> int:
        """Append one line of records at position `expect`, or nothing at all; gives the next position.

        `expect` 0 creates the run. `epoch` is the claim number of the writer; None if it does not own the
        run. Raises Conflict when another line has that position, Fenced when the claim was lost, ObjectNotFound,
        DamagedLog, LogFormatTooNew, RecordTooLarge, SerializationError, StorageError, NoSpace: nothing was
        recorded then. After IndeterminateAppend, close the run and read it to see.
        """
        raise NotImplementedError

    def read(self, run_id: str, position: int = 0) -> Reading:
        """The records from `position` on, and who owns the run. ObjectNotFound if there is no such run."""
        raise NotImplementedError

    def read_ends(self, run_id: str) -> Reading | None:
        """The records of the first and of the last line alone, where that costs less than reading all of them; None
        when it does not, or when they do not show that the log is in order: then read the whole (see ``_ends.py``)."""
        return None

    def sync(self, run_id: str, position: int) -> None:
        """Return when everything before `position` is as durable as the store promises."""
        raise NotImplementedError

    def close(self, run_id: str) -> None:
        """Forget what is kept in memory of a log; it is opened anew when it is needed again."""
        raise NotImplementedError

    def list(self) -> RunIds:
        """The ids of all runs, the oldest first. One of them may turn out never to have been created."""
        raise NotImplementedError

    def find(self, prefix: str) -> RunIds:
        """The ids of the runs whose id begins with `prefix`."""
        return [run_id for run_id in self.list() if run_id.startswith(prefix)]

    def delete(self, run_id: str) -> None:
        """Remove a run and its results. ObjectNotFound if there is nothing to remove."""
        raise NotImplementedError

    # -- results

    def put_result(self, run_id: str, data: bytes) -> str:
        """Keep a value for a run; gives its name. Precedes the record that names it. The same data twice is once."""
        raise NotImplementedError

    def get_result(self, run_id: str, name: str, size: int) -> bytes:
        """The value of that name; MissingResult if it is gone, or not what was put there."""
        raise NotImplementedError

    # -- owners

    def own(self) -> str:
        """The token of this process, which is alive from now on. Call :meth:`disown` as often as this."""
        raise NotImplementedError

    def disown(self, token: str) -> None:
        """One run less is owned under this token. Without effect for the token of another process."""
        raise NotImplementedError

    def released(self, token: str) -> None:
        """Like :meth:`disown`, of a run whose log says that its owner has let go."""
        self.disown(token)

    def is_alive(self, token: str) -> bool:
        """Whether the process that drew this token still owns runs."""
        raise NotImplementedError

    # -- others' appends

    def follow(self, run_id: str, position: int = 0) -> AbstractContextManager[None]:
        """``with store.follow(run_id, position):`` others' records from `position` on reach the bus while it runs.

        A run that does not exist yet may be followed. See ``_follower.py`` for two kinds of news that are no
        records: ``orphaned`` and ``unreadable``.
        """
        raise NotImplementedError

    # -- fork

    def _after_fork_in_child(self) -> None:
        raise NotImplementedError


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    # _files registered before this: the parent's descriptors are closed by now
    os.register_at_fork(after_in_child=_after_fork_in_child)


def make_store(maker: str, home: str) -> Store:
    """The store that the setting ``store`` names, ``module:name``: the module is imported, and what has that name is
    called with the home. ConfigurationError when there is none."""
    import importlib  # needed by those alone who keep logs elsewhere

    module, _, name = maker.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"MICROFLOW_STORE is {maker!r}, which makes no store: {error}") from error
    store = make(home)
    if not isinstance(store, Store):
        raise ConfigurationError(f"MICROFLOW_STORE is {maker!r}, which gave {store!r}: no microflow.stores.Store")
    return store


def _name_of(data: bytes) -> str:
    # hashlib takes milliseconds to import, and most runs never need it
    from hashlib import sha256

    return sha256(data).hexdigest()


# ------------------------------------------------------------------------------------------------ files


class FileStore(Store):
    """A folder of runs, shared by any number of processes. Nothing is made before it is needed.

    `durability` says what :meth:`sync` waits for: ``process`` (nothing: what the system has survives a
    killed process) or ``disk`` (it survives a power cut).
    """

    def __init__(self, root: str | os.PathLike[str], durability: Literal["process", "disk"] = "process") -> None:
        if durability not in ("process", "disk"):
            raise ValueError(f"durability is 'process' or 'disk', not {durability!r}")
        self.location = os.path.abspath(os.fspath(root))
        self.durability = durability
        self.bus = Bus()
        self._disk = durability == "disk"
        self._runs = os.path.join(self.location, "runs")
        self.queue = FileQueue(os.path.join(self.location, "queue"), durable=self._disk)
        self.deployments = FileDocuments(os.path.join(self.location, "deployments"), durable=self._disk)
        self._after_fork_in_child()
        _stores.add(self)

    def _after_fork_in_child(self) -> None:
        # The locks may be held by threads that do not exist here; the files of the logs and of the owner are closed.
        self._mutex = threading.Lock()  # guards the table of logs
        self._logs: dict[str, Log] = {}
        self._owners = Owners(os.path.join(self.location, "owners"), durable=self._disk)
        self._follower = Follower(self.bus, self._size, self._read_foreign, self.is_alive)

    @property
    def private(self) -> bool:
        try:
            return _files.is_private_folder(self.location)
        except FileNotFoundError:
            return True  # it will be made 0700
        except OSError:
            return False

    # -- logs

    def append(
        self, run_id: str, bodies: list[Body], *, expect: int, epoch: int | None = None, time_us: int | None = None
    ) -> int:
        if not expect:
            self._make_folder(self._runs)
        return self._with_log(run_id, Log.append, bodies, expect, epoch, time_us)

    def read(self, run_id: str, position: int = 0) -> Reading:
        return self._with_log(run_id, Log.read, position)

    def _read_foreign(self, run_id: str, position: int) -> Reading:
        return self._with_log(run_id, Log.read, position, foreign=True)

    def read_ends(self, run_id: str) -> Reading | None:
        from ._ends import BLOCK, read_ends  # for listings alone

        medium = FileMedium(self._path(run_id))
        try:
            medium.ready(writable=False)
            size = medium.size()
            if size <= BLOCK:
                return None
            return read_ends(run_id, medium.fetch(0, BLOCK), medium.fetch(size - BLOCK, BLOCK))
        except OSError:
            return None  # who reads the whole is told
        finally:
            medium.rest()

    def sync(self, run_id: str, position: int) -> None:
        if self._disk:
            self._with_log(run_id, Log.sync, position)

    def _with_log(self, run_id: str, use: Callable[Concatenate[Log, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        log = self._logs.get(run_id) or self._new_log(run_id)
        try:
            return use(log, *args, **kwargs)
        except ObjectNotFound:
            self.close(run_id)
            raise
        finally:
            if self._logs.get(run_id) is not log:  # forgotten meanwhile, and perhaps opened again since
                log.close()

    def _new_log(self, run_id: str) -> Log:
        path = self._path(run_id)
        with self._mutex:
            log = self._logs.setdefault(run_id, Log(run_id, FileMedium(path)))
            others = list(self._logs.values())[:-1] if len(self._logs) > MOST_OPEN_LOGS else []
        for other in others:
            if other.is_written:
                other.rest()  # closes the file and keeps what was read
            else:
                self.close(other.run_id)
        return log

    def _path(self, run_id: str) -> str:
        return os.path.join(self._runs, check_run_id(run_id) + ".jsonl")

    def close(self, run_id: str) -> None:
        with self._mutex:
            log = self._logs.pop(run_id, None)
        if log is not None:
            log.close()

    def _size(self, run_id: str) -> int:
        try:
            return _files.stat_path(self._path(run_id)).st_size
        except FileNotFoundError:
            return 0

    def list(self) -> RunIds:
        return sorted(
            name[:36] for name in self._names(self._runs) if name[36:] == ".jsonl" and RUN_ID.fullmatch(name[:36])
        )

    def _names(self, folder: str) -> RunIds:
        try:
            return _files.list_folder(folder)
        except OSError as error:
            raise storage_error(error, folder) from error

    def _make_folder(self, folder: str) -> None:
        try:
            _files.make_private_folder(folder, durable=self._disk)
        except OSError as error:
            raise storage_error(error, folder) from error

    def delete(self, run_id: str) -> None:
        path, folder = self._path(run_id), self._results(run_id)
        self.close(run_id)
        results = self._names(folder)
        found = bool(results)
        try:
            # the log first: results without a log are litter, a log without its results is a run that lost them
            found = remove_file(path) or found
            for name in results:
                remove_file(os.path.join(folder, name))
            if results:
                _files.remove_folder(folder)
        except OSError as error:
            raise storage_error(error, path) from error
        if not found:
            raise ObjectNotFound(f"there is no run {run_id} in {self.location}")

    # -- results

    def _results(self, run_id: str) -> str:
        return os.path.join(self._runs, check_run_id(run_id) + ".results")

    def put_result(self, run_id: str, data: bytes) -> str:
        folder, name = self._results(run_id), _name_of(data)
        self._make_folder(self._runs)
        self._make_folder(folder)
        temporary = os.path.join(folder, f".{os.urandom(16).hex()}")
        try:
            self._write_result(temporary, data)
            _files.replace(temporary, os.path.join(folder, name))
            if self._disk:
                _files.sync_folder(folder)
        except OSError as error:
            raise storage_error(error, os.path.join(folder, name)) from error
        return name

    def _write_result(self, path: str, data: bytes) -> None:
        descriptor = _files.open_new(path)
        whole = False
        try:
            written = _files.write(descriptor, data)
            if written != len(data):
                raise NoSpace(f"{path}: only {written} of {len(data)} bytes could be written; free space and try again")
            if self._disk:
                _files.sync_full(descriptor)
            whole = True
        finally:
            _files.close(descriptor)
            if not whole:
                remove_file(path)

    def get_result(self, run_id: str, name: str, size: int) -> bytes:
        path = os.path.join(self._results(run_id), name)
        try:
            data = self._read_result(path, size) if re.fullmatch(_RESULT_NAME, name) else None
        except FileNotFoundError:
            data = None
        except OSError as error:
            raise storage_error(error, path) from error
        if data is None or len(data) != size or _name_of(data) != name:
            reason = "is missing" if data is None else "does not hold what was written to it"
            raise MissingResult(f"the file {name} with a result of run {run_id} {reason} (in {self.location})")
        return data

    def _read_result(self, path: str, size: int) -> bytes:
        medium = FileMedium(path)
        medium.ready(writable=False)
        try:
            return medium.fetch(0, size + 1)  # one more byte than there should be
        finally:
            medium.rest()

    # -- owners

    def own(self) -> str:
        return self._owners.own()

    def disown(self, token: str) -> None:
        self._owners.disown(token)

    def released(self, token: str) -> None:
        self._owners.disown(token, released=True)

    def is_alive(self, token: str) -> bool:
        return self._owners.is_alive(token)

    # -- others' appends

    def follow(self, run_id: str, position: int = 0) -> AbstractContextManager[None]:
        return self._follower.follow(check_run_id(run_id), position)


# ------------------------------------------------------------------------------------------------ memory


class MemoryStore(Store):
    """Logs in memory: the same lines, the same rules, gone with the process. Nobody else can append."""

    location = ":memory:"

    def __init__(self) -> None:
        self.bus = Bus()
        self._media: dict[str, MemoryMedium] = {}
        self._results: dict[tuple[str, str], bytes] = {}
        self.queue = MemoryQueue()
        self.deployments = MemoryDocuments()
        self._after_fork_in_child()
        _stores.add(self)

    def _after_fork_in_child(self) -> None:
        # What the parent wrote stays, as a copy. Its locks may be held by threads that do not exist here.
        self._mutex = threading.Lock()  # guards the tables
        self._logs = {run_id: Log(run_id, medium) for run_id, medium in self._media.items()}
        self._token: str | None = None
        self._owned = 0

    @property
    def private(self) -> bool:
        return True

    def append(
        self, run_id: str, bodies: list[Body], *, expect: int, epoch: int | None = None, time_us: int | None = None
    ) -> int:
        if not expect and run_id not in self._logs:
            medium = MemoryMedium(f"{self.location}/{check_run_id(run_id)}")
            with self._mutex:
                self._logs.setdefault(run_id, Log(run_id, self._media.setdefault(run_id, medium)))
        return self._log(run_id).append(bodies, expect=expect, epoch=epoch, time_us=time_us)

    def _log(self, run_id: str) -> Log:
        log = self._logs.get(run_id)
        if log is None:
            raise ObjectNotFound(f"there is no run {check_run_id(run_id)} in this process's memory")
        return log

    def read(self, run_id: str, position: int = 0) -> Reading:
        return self._log(run_id).read(position)

    def sync(self, run_id: str, position: int) -> None:
        """Does nothing: memory is as durable as it gets."""

    def close(self, run_id: str) -> None:
        """Does nothing: what is in memory has no other place."""

    def list(self) -> RunIds:
        with self._mutex:
            return sorted(run_id for run_id, medium in self._media.items() if medium.data)

    def delete(self, run_id: str) -> None:
        self._log(run_id)
        with self._mutex:
            del self._logs[run_id], self._media[run_id]
            for key in [key for key in self._results if key[0] == run_id]:
                del self._results[key]

    def put_result(self, run_id: str, data: bytes) -> str:
        name = _name_of(data)
        with self._mutex:
            self._results[check_run_id(run_id), name] = bytes(data)
        return name

    def get_result(self, run_id: str, name: str, size: int) -> bytes:
        data = self._results.get((run_id, name))
        if data is None or len(data) != size:
            raise MissingResult(f"there is no result {name} of {size} bytes for run {run_id} in memory")
        return data

    def own(self) -> str:
        with self._mutex:
            self._token = self._token or os.urandom(16).hex()
            self._owned += 1
            return self._token

    def disown(self, token: str) -> None:
        with self._mutex:
            if token == self._token:
                self._owned -= 1
                if not self._owned:
                    self._token = None

    def is_alive(self, token: str) -> bool:
        return token == self._token

    def follow(self, run_id: str, position: int = 0) -> AbstractContextManager[None]:
        """Nothing to follow: whoever appends to this store publishes on its bus."""
        return _NOT_FOLLOWING


class _NotFollowing:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


_NOT_FOLLOWING = _NotFollowing()

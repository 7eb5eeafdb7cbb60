# SPDX-License-Identifier: Apache-2.0
"""Values under a key: persisted results, their expiry and their locks.

A :class:`ResultStore` writes a value as a :class:`ResultRecord` under a key and reads it back, in this process or in
another one. That is *persisting* (``persist_result``, off by default), which caching needs; what is *kept* in the log
so that a re-execution hands it back is another matter (``_kept``). What a file holds is said in ``_records``.

Waiting: reading and writing is disk work, which the blocking form does in its thread, the async one (``aread`` ...)
in a thread of the loop's pool. Both are one text over ``_waits``.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from ._locks import FileSystemLockManager as FileSystemLockManager
from ._locks import IsolationLevel as IsolationLevel
from ._locks import MemoryLockManager as MemoryLockManager
from ._records import ResultCache
from ._records import ResultRecord as ResultRecord
from ._records import ResultRecordMetadata as ResultRecordMetadata
from ._storage import LocalFileSystem as LocalFileSystem
from ._storage import as_storage, default_storage
from ._waits import AsyncioWaits, BlockingWaits, finish, loop_is_running
from .context import FlowRunContext, TaskRunContext
from .exceptions import ConfigurationError, DamagedResult, MissingResult, SerializationError, StorageError
from .serializers import get_serializer
from .settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ._locks import LockManager
    from ._storage import Storage
    from ._waits import Waits
    from .serializers import Serializer

_UNREADABLE = (DamagedResult, SerializationError, StorageError)
_BLOCKING, _ASYNCIO = BlockingWaits(), AsyncioWaits()


# ------------------------------------------------------------------------------------------------ the store


def _random_key() -> str:
    return os.urandom(16).hex()


class ResultStore:
    """Reads and writes results. Without a `result_storage` it is the folder ``storage`` of the home, which is looked
    up when a result is first read or written; `metadata_storage` keeps metadata apart from values.

    ``storage_key_fn()`` makes the key of a result that is given none. Methods whose name begins with ``a`` are the
    same for coroutines."""

    def __init__(
        self,
        result_storage: Storage | str | os.PathLike[str] | None = None,
        metadata_storage: Storage | str | os.PathLike[str] | None = None,
        lock_manager: LockManager | None = None,
        cache_result_in_memory: bool = True,
        serializer: Serializer | str | None = None,
        storage_key_fn: Callable[[], str] = _random_key,
        cache: ResultCache | None = None,
    ) -> None:
        self._result_storage = None if result_storage is None else as_storage(result_storage)
        self.metadata_storage = None if metadata_storage is None else as_storage(metadata_storage)
        self.lock_manager = lock_manager
        self.cache_result_in_memory = cache_result_in_memory
        self.serializer = get_serializer(current_settings().default_serializer if serializer is None else serializer)
        self.storage_key_fn = storage_key_fn
        self.cache = ResultCache() if cache is None else cache
        self._of = ""  # "of task 'name'", for errors

    @property
    def result_storage(self) -> Storage:
        """Where values are written."""
        if self._result_storage is None:
            self._result_storage = default_storage()
        return self._result_storage

    # -------------------------------------------------------------------------------------- derived stores

    def update_for_task(self, task: Any, lock_manager: LockManager | None = None) -> ResultStore:
        """The store for the runs of `task`: this one with what the task says of storage, serializer and keys.
        `lock_manager` is that of a transaction around it; the one of the task's cache policy takes precedence."""
        store = self._derived(task, f"of task {task.name!r}")
        store.cache_result_in_memory = bool(getattr(task, "cache_result_in_memory", self.cache_result_in_memory))
        template = getattr(task, "result_storage_key", None)
        if template is not None:
            store.storage_key_fn = partial(storage_key_from, template)
        store.lock_manager = lock_manager or self.lock_manager
        # the default policy says nothing of these, and to ask for it would load its module
        policy: Any = None if task.has_default_policy else task.cache_policy
        if getattr(policy, "lock_manager", None) is not None:
            store.lock_manager = policy.lock_manager
        if getattr(policy, "key_storage", None) is not None:
            store.metadata_storage = as_storage(policy.key_storage)
        return store

    def update_for_flow(self, flow: Any) -> ResultStore:
        """The store for the runs of `flow`, and of the tasks in it."""
        return self._derived(flow, f"of flow {flow.name!r}")

    def _derived(self, definition: Any, of: str) -> ResultStore:
        storage, serializer = (getattr(definition, name, None) for name in ("result_storage", "result_serializer"))
        store = ResultStore(
            self._result_storage if storage is None else storage,
            self.metadata_storage,
            self.lock_manager,
            self.cache_result_in_memory,
            self.serializer if serializer is None else serializer,
            self.storage_key_fn,
            self.cache,
        )
        store._of = of
        return store

    # ---------------------------------------------------------------------------------------------- reading

    def exists(self, key: str) -> bool:
        """Whether there is a result under `key` that can be read and whose time is not over."""
        return finish(self._exists(_BLOCKING, key))

    async def aexists(self, key: str) -> bool:
        """:meth:`exists` for coroutines."""
        return await self._exists(_ASYNCIO, key)

    async def _exists(self, waits: Waits, key: str) -> bool:
        try:
            if self.metadata_storage is None:
                metadata = self._record(*await self._bytes(waits, key)).metadata
            else:
                metadata = ResultRecordMetadata.load_bytes(await _ask(waits, self.metadata_storage.read_path, key))
        except Exception:  # whatever keeps a result from being read: the task runs
            return False
        return not metadata.is_expired()

    def read(self, key: str, holder: str | None = None) -> ResultRecord[Any]:
        """The result under `key`, also if its time is over. Waits while somebody else has locked it.

        MissingResult, DamagedResult, SerializationError or StorageError: each names the key, the file and the task."""
        return finish(self._read(_BLOCKING, key, holder))

    async def aread(self, key: str, holder: str | None = None) -> ResultRecord[Any]:
        """:meth:`read` for coroutines."""
        return await self._read(_ASYNCIO, key, holder)

    async def _read(self, waits: Waits, key: str, holder: str | None) -> ResultRecord[Any]:
        locks = self.lock_manager
        if locks is not None and not locks.is_lock_holder(key, holder or default_holder()):
            await (locks.await_for_lock(key) if waits is _ASYNCIO else _now(locks.wait_for_lock, key))
        try:
            return self._record(*await self._bytes(waits, key))
        except ValueError as error:
            raise MissingResult(f"the result {key!r} {self._of} is not there: {error}") from error
        except _UNREADABLE as error:
            kind = next(kind for kind in _UNREADABLE if isinstance(error, kind))
            raise kind(f"the result {key!r} {self._of} in {self._where(key)} cannot be read: {error}") from error

    async def _bytes(self, waits: Waits, key: str) -> tuple[bytes, bytes]:
        """Metadata and payload, from memory or storage. Errors as the storage raises them."""
        full, version = self._full(key), self._version(key)
        if self.cache_result_in_memory and (cached := self.cache.get(full, version)) is not None:
            return cached
        if self.metadata_storage is None:
            head, _, payload = (await _ask(waits, self.result_storage.read_path, key)).partition(b"\n")
        else:
            head = await _ask(waits, self.metadata_storage.read_path, key)
            place = ResultRecordMetadata.load_bytes(head).storage_key or key
            payload = await _ask(waits, self.result_storage.read_path, place)
        if self.cache_result_in_memory:
            self.cache.put(full, version, head, payload)
        return head, payload

    def _record(self, head: bytes, payload: bytes) -> ResultRecord[Any]:
        places = (self.result_storage, self.metadata_storage)
        trusted = all(_is_private(place) for place in places if place is not None)
        return ResultRecord.deserialize_from_result_and_metadata(payload, head, trusted=trusted)

    def _full(self, key: str) -> str:
        """The key as it stands in a record: in a folder, the path of the file."""
        storage = self.result_storage
        return storage._resolve_path(key) if isinstance(storage, LocalFileSystem) else key

    def _short(self, key: str) -> str:
        """The key as it was asked for."""
        storage = self.result_storage
        if isinstance(storage, LocalFileSystem) and os.path.isabs(key):
            return os.path.relpath(storage._resolve_path(key), storage.basepath)
        return key

    def _version(self, key: str) -> object:
        """What tells one content of the key from the next, of storages that can say, and from that of others."""
        version = getattr(self.metadata_storage or self.result_storage, "version", None)
        return self.result_storage, self.metadata_storage, version and version(key)

    def _where(self, key: str) -> str:
        try:
            return self._full(key)
        except ValueError:
            return repr(self.result_storage)

    # ---------------------------------------------------------------------------------------------- writing

    def create_result_record(
        self, obj: Any, key: str | None = None, expiration: datetime | None = None
    ) -> ResultRecord[Any]:
        """The record of a value, to be persisted later. Without a `key`, ``storage_key_fn()`` makes one."""
        key = self._full(key or self.storage_key_fn())
        return ResultRecord(obj, ResultRecordMetadata(key, expiration, self.serializer))

    def write(
        self, obj: Any, key: str | None = None, expiration: datetime | None = None, holder: str | None = None
    ) -> None:
        """Persist a value under `key`. Errors as of :meth:`persist_result_record`."""
        self.persist_result_record(self.create_result_record(obj, key, expiration), holder)

    async def awrite(
        self, obj: Any, key: str | None = None, expiration: datetime | None = None, holder: str | None = None
    ) -> None:
        """:meth:`write` for coroutines."""
        await self.apersist_result_record(self.create_result_record(obj, key, expiration), holder)

    def persist_result_record(self, record: ResultRecord[Any], holder: str | None = None) -> None:
        """Write a record under its key, in place of what is there.

        RuntimeError when somebody else has locked the key, SerializationError when the value cannot be turned into
        bytes, StorageError when they cannot be written."""
        finish(self._persist(_BLOCKING, record, holder))

    async def apersist_result_record(self, record: ResultRecord[Any], holder: str | None = None) -> None:
        """:meth:`persist_result_record` for coroutines."""
        await self._persist(_ASYNCIO, record, holder)

    async def _persist(self, waits: Waits, record: ResultRecord[Any], holder: str | None) -> None:
        if record.metadata.storage_key is None:
            record.metadata.storage_key = self._full(self.storage_key_fn())
        full = record.metadata.storage_key
        key, locks = self._short(full), self.lock_manager
        if locks is not None and locks.is_locked(key) and not locks.is_lock_holder(key, holder or default_holder()):
            raise RuntimeError(f"the result {key!r} {self._of} cannot be written: the key is locked by somebody else")
        payload = record.serialize_result()
        record.metadata._seal(payload)
        head = record.serialize_metadata()
        if self.metadata_storage is None:
            await _ask(waits, self.result_storage.write_path, full, head + b"\n" + payload)
        else:
            # the value first: dying between the two, nothing is found under the key
            await _ask(waits, self.result_storage.write_path, full, payload)
            await _ask(waits, self.metadata_storage.write_path, key, head)
        record.is_persisted = True

    # ------------------------------------------------------------------------------------------------ locks

    def _locks(self) -> LockManager:
        if self.lock_manager is None:
            raise ConfigurationError(
                f"this result store {self._of} has no lock manager, so its results cannot be locked. "
                f"Give the cache policy one: policy.configure(lock_manager=MemoryLockManager())"
            )
        return self.lock_manager

    def supports_isolation_level(self, level: IsolationLevel) -> bool:
        """Whether transactions of that level can be had: SERIALIZABLE needs a lock manager."""
        if level not in list(IsolationLevel):
            raise ValueError(f"{level!r} is not an isolation level; they are {', '.join(IsolationLevel.__members__)}")
        return level == IsolationLevel.READ_COMMITTED or self.lock_manager is not None

    def acquire_lock(self, key: str, holder: str | None = None, timeout: float | None = None) -> bool:
        """Lock `key`; says whether that worked within `timeout` seconds. ConfigurationError without lock manager."""
        return self._locks().acquire_lock(key, holder or default_holder(), timeout)

    async def aacquire_lock(self, key: str, holder: str | None = None, timeout: float | None = None) -> bool:
        """:meth:`acquire_lock` for coroutines."""
        return await self._locks().aacquire_lock(key, holder or default_holder(), timeout)

    def release_lock(self, key: str, holder: str | None = None) -> None:
        """Give the lock back; ValueError for who does not hold it."""
        self._locks().release_lock(key, holder or default_holder())

    def is_locked(self, key: str) -> bool:
        """Whether anybody holds the lock on `key`."""
        return self._locks().is_locked(key)

    def is_lock_holder(self, key: str, holder: str | None = None) -> bool:
        """Whether `holder` (this thread or coroutine unless given) holds the lock on `key`."""
        return self._locks().is_lock_holder(key, holder or default_holder())

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody holds the lock on `key`; says whether that came within `timeout` seconds."""
        return self._locks().wait_for_lock(key, timeout)

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """:meth:`wait_for_lock` for coroutines."""
        return await self._locks().await_for_lock(key, timeout)


async def _now(fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*args)


async def _ask(waits: Waits, method: Callable[..., Any], *args: Any) -> Any:
    """Call a method of a storage, which may be a coroutine function; ours block on the disk."""
    answer = await waits.block(method, *args)
    return (await waits.call(lambda: answer)).unwrap() if hasattr(answer, "__await__") else answer


def _is_private(storage: Storage) -> bool:
    """Whether pickles may be opened from a storage: one that does not say so is taken for anybody's."""
    return bool(getattr(storage, "private", False))


def default_holder() -> str:
    """Who calls: this thread of this process, and on a loop its asyncio task."""
    import socket  # only locks that are taken without a holder need the host's name

    thread = threading.current_thread()
    holder = f"{socket.gethostname()}:{os.getpid()}:{thread.ident}:{thread.name}"
    if loop_is_running():
        import asyncio  # loaded already: a loop runs

        task = asyncio.current_task()
        holder += f":{id(task)}" if task is not None else ""
    return holder


# -------------------------------------------------------------------------------------------- what is current

_cache = ResultCache()  # of the stores that are given out where no run has one


def get_result_store() -> ResultStore:
    """The store of the current task run, else of the current flow run, else a new one with the defaults."""
    for context in (TaskRunContext.get(), FlowRunContext.get()):
        store: ResultStore | None = getattr(context, "result_store", None)
        if store is not None:
            return store
    return ResultStore(cache=_cache)


def should_persist_result() -> bool:
    """Whether results are persisted here: as the current task run says, else the flow run, else the setting."""
    for context in (TaskRunContext.get(), FlowRunContext.get()):
        wanted: bool | None = getattr(context, "persist_result", None)
        if wanted is not None:
            return wanted
    return bool(current_settings().persist_results_by_default)


class _Names:
    """Attributes of a run for the template of a key; None outside of runs, where there are none."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.__dict__.get("run"), name, None)


def storage_key_from(template: str) -> str:
    """The key that ``result_storage_key`` means for the current task run: ``str.format`` with ``parameters``,
    ``flow_run``, ``task_run`` and ``deployment``. KeyError for another name."""
    task_context, flow_context = TaskRunContext.get(), FlowRunContext.get()
    parameters = {} if task_context is None else task_context.parameters
    task_run, flow_run, deployment = _Names(), _Names(), _Names()
    if task_context is not None:
        task_run = _Names(run=task_context.task_run, parameters=parameters, task_name=task_context.task.name)
    if flow_context is not None:
        flow_run = _Names(run=flow_context.flow_run, parameters=flow_context.parameters)
    return template.format(parameters=parameters, task_run=task_run, flow_run=flow_run, deployment=deployment)

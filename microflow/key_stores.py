# SPDX-License-Identifier: Apache-2.0
"""Logs elsewhere: a whole store made of five methods on keys and bytes, which is what a user writes.

Goal: whoever has a database or an object store derives a class from :class:`KeyStore` and writes ``create``, ``put``,
``get``, ``scan`` and ``remove``. ``microflow.testing.check_store`` then says whether they keep what is asked of them.

The rule
--------
Everything rests on one promise: **of all who create the same key, one is told that it did**. (S3: ``PutObject`` with
``If-None-Match: *``; DynamoDB: ``attribute_not_exists``; SQL: a primary key.) A line's key names its position and the
checksum of the line before it, so two writers who want the same place want the same key. Who comes second is told so,
reads what was written and finds a Conflict, or that its claim was lost. No lock is asked for, and an append is one
call. What a line must be, and which lines count, is the same as in a file (``log.py``): the lines of a run, one after
the other, are the file that a :class:`FileStore` would have written.

The keys: ``runs/<id>`` is made before the first line, so that a run that has one is always listed;
``lines/<id>/<position>-<checksum before it>``; ``results/<id>/<sha256>``; ``owners/<token>``; ``queue/<id>``;
``deployments/<id>``. Ids, tokens and checksums are of [0-9a-f-]; no key is longer than 90 characters.

Who is alive
------------
There is no lock that ends with a process. An owner renews ``owners/<token>`` every quarter of ``lease_seconds``, in a
thread that exists while it owns runs (where no thread can be started, an append does it); it counts as dead when the
last time is older than that. So **a run whose process was killed is Running until its lease ends**, for up to 30
seconds, then Crashed like any other: waiters hear of it, ``resume`` and servers take it over. Sooner it can be taken
with ``--steal``. Who wants less sets the attribute in the class, for all processes alike: a process that stands still
for longer than the lease (a frozen Lambda environment, a laptop that sleeps) loses its runs to whoever asks, and is
stopped at its next append by the claim number. Nothing else depends on the lease. A store that knows better overrides
``own``, ``disown`` and ``is_alive``.

Known holes
-----------
Clocks of two machines that differ by more than the lease make owners look dead. A run of which a line was appended
while another process deleted it leaves that line behind, and a run that is made again under the same id is then
damaged when it gets there. A process that dies while it deletes a run leaves lines and results until the run is
deleted once more.
"""

from __future__ import annotations

import os
import re
import threading
import time
from typing import TYPE_CHECKING, Any

from ._chain import Chain, encode_bodies, join, parse_line
from ._follower import Follower
from ._ledger import Ledger, records_of
from ._media import RUN_ID, check_run_id
from .events import Bus
from .exceptions import DamagedLog, IndeterminateAppend, MissingResult, ObjectNotFound, StorageError
from .log import Reading
from .stores import MOST_OPEN_LOGS, Store, _name_of, _stores

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from ._chain import Line

    Body = dict[str, Any]
    RunIds = list[str]  # inside the classes below, `list` is a method

__all__ = ["KeyStore"]

_TOKEN = re.compile(r"[0-9a-f]{32}")
_RESULT_NAME = re.compile(r"[0-9a-f]{64}")
_LOOK_AGAIN = 1.0  # seconds between two looks whether the run was deleted


class KeyStore(Store):
    """Derive from it, write the five methods that stand first, and keep logs wherever there are keys and values.

    Any thread calls them, several at once. What was created or put is seen by every later ``get`` and ``scan``, of
    every process, and is as durable as it will be. Raise StorageError when the storage fails, NoSpace when it is full:
    then nothing happened, or (after a ``create`` or ``put``) it may have happened; the store looks. They must not run
    flows or tasks: locks are held around them. A child made by fork uses the same object.

    Attributes: ``location`` names the store in messages. ``lease_seconds``: so long after its last sign of life an
    owner is alive, and a killed run Running; to be set in the class. ``follow_seconds``: the pause between two looks at
    a run that another process writes. ``is_private``: nobody but this user can write there, so that pickles from it may
    be opened.
    """

    lease_seconds: float = 30.0
    follow_seconds: float = 0.1
    is_private: bool = False

    def __init__(self, location: str) -> None:
        self.location = location
        self.bus = Bus()
        self.queue = KeyQueue(self)
        self.deployments = KeyDocuments(self)
        self._after_fork_in_child()
        _stores.add(self)

    # -- what a user writes

    def create(self, key: str, value: bytes) -> bool:
        """Store `value` unless there is such a key, in one step; whether it was stored."""
        raise NotImplementedError

    def put(self, key: str, value: bytes) -> None:
        """Store `value`, in place of what has this key."""
        raise NotImplementedError

    def get(self, key: str) -> bytes | None:
        """The value of the key; None if there is none."""
        raise NotImplementedError

    def scan(self, prefix: str, start: str = "") -> Iterable[tuple[str, bytes]]:
        """The keys that begin with `prefix` and do not come before `start`, in order, with their values."""
        raise NotImplementedError

    def remove(self, key: str) -> bool:
        """Remove the key; whether it was there."""
        raise NotImplementedError

    # -- logs

    def _after_fork_in_child(self) -> None:
        # The locks may be held by threads that do not exist here, and so may the thread that renews the lease.
        self._mutex = threading.Lock()  # guards the table of logs
        self._logs: dict[str, _KeyLog] = {}
        self._lease = _Lease(self)
        self._looked: dict[str, tuple[float, int]] = {}  # of followed runs: when, and how many lines there were
        self._follower = Follower(self.bus, self._size, self._read_foreign, self.is_alive)

    @property
    def private(self) -> bool:
        return self.is_private

    def _log(self, run_id: str) -> _KeyLog:
        log = self._logs.get(check_run_id(run_id))
        if log is None:
            with self._mutex:
                log = self._logs.setdefault(run_id, _KeyLog(self, run_id))
                if len(self._logs) > MOST_OPEN_LOGS:  # what is forgotten is read again when it is needed
                    kept = {key: each for key, each in self._logs.items() if each is log or each.is_written}
                    self._logs = kept
        return log

    def append(
        self, run_id: str, bodies: list[Body], *, expect: int, epoch: int | None = None, time_us: int | None = None
    ) -> int:
        self._lease.renew_without_thread()
        return self._log(run_id).append(bodies, expect, epoch, time.time_ns() // 1000 if time_us is None else time_us)

    def read(self, run_id: str, position: int = 0) -> Reading:
        return self._log(run_id).read(position)

    def _read_foreign(self, run_id: str, position: int) -> Reading:
        return self._log(run_id).read(position, foreign=True)

    def sync(self, run_id: str, position: int) -> None:
        """Does nothing: what was created is as durable as it will be."""

    def close(self, run_id: str) -> None:
        with self._mutex:
            self._logs.pop(run_id, None)

    def list(self) -> RunIds:
        return [key[5:] for key, _ in self.scan("runs/") if RUN_ID.fullmatch(key[5:])]

    def delete(self, run_id: str) -> None:
        self.close(check_run_id(run_id))
        first, *others = [key for key, _ in self.scan(f"lines/{run_id}/")] or [""]
        results = [key for key, _ in self.scan(f"results/{run_id}/")]
        # The first line first, for without it the run never was; then from the end, so that what a death in between
        # leaves is never taken for a log with a gap.
        found = [self.remove(key) for key in (first, *reversed(others), *results) if key]
        if not self.remove(f"runs/{run_id}") and not any(found):
            raise ObjectNotFound(f"there is no run {run_id} in {self.location}")

    # -- results

    def put_result(self, run_id: str, data: bytes) -> str:
        name = _name_of(data)
        self.put(f"results/{check_run_id(run_id)}/{name}", bytes(data))
        return name

    def get_result(self, run_id: str, name: str, size: int) -> bytes:
        is_name = _RESULT_NAME.fullmatch(name)
        data = self.get(f"results/{check_run_id(run_id)}/{name}") if is_name else None
        if data is None or len(data) != size or _name_of(data) != name:
            reason = "is missing" if data is None else "is not what was put there"
            raise MissingResult(f"the result {name} of run {run_id} {reason} (in {self.location})")
        return data

    # -- owners

    def own(self) -> str:
        return self._lease.own()

    def disown(self, token: str) -> None:
        self._lease.disown(token)

    def is_alive(self, token: str) -> bool:
        if token == self._lease.token:
            return True
        beat = self.get(f"owners/{token}") if _TOKEN.fullmatch(token) else None
        return beat is not None and beat.isdigit() and abs(time.time_ns() - int(beat)) < self.lease_seconds * 1e9

    # -- others' appends

    def follow(self, run_id: str, position: int = 0) -> AbstractContextManager[None]:
        self._looked.pop(check_run_id(run_id), None)
        return self._follower.follow(run_id, position)

    def _size(self, run_id: str) -> int:
        """How many lines there were at the last look; the follower asks far more often than a store should be."""
        looked, size = self._looked.get(run_id, (-self.follow_seconds, 0))
        now = time.monotonic()
        if now - looked >= self.follow_seconds:
            size = self._log(run_id).size()
            self._looked[run_id] = (now, size)
        return size


class _KeyLog(Ledger):
    """The lines of one run, each under a key of its own. Any thread may call any method."""

    def __init__(self, store: KeyStore, run_id: str) -> None:
        super().__init__(run_id, f"{store.location}/{run_id}")
        self._store = store
        self._prefix = f"lines/{run_id}/"
        self._first = self._key()
        self._mutex = threading.Lock()  # guards the fields of the ledger
        self._next_look = 0.0
        self.is_written = False

    def _key(self) -> str:
        """Where the next line belongs."""
        return f"{self._prefix}{self._chain.next_position:010d}-{self._chain.checksum}"

    def append(self, bodies: Sequence[Body], expect: int, epoch: int | None, time_us: int) -> int:
        text = encode_bodies(bodies)
        with self._mutex:
            self.is_written = True
            if bodies[0]["k"] == "claim" or time.monotonic() >= self._next_look:
                self._check_first()
            if self._half or self._chain.next_position != expect:
                self._fold()
            while True:
                if expect:
                    self._check_exists()
                self._check_sound()
                self._check_turn(bodies, expect, epoch)
                line = join(expect, self._chain.checksum, epoch, time_us, text)
                if not expect:
                    # Precedes the first line: a death in between leaves the id of a run that never was, not a run
                    # that is never listed.
                    self._store.put(f"runs/{self.run_id}", b"")
                if self._create(line):
                    self._account(line, epoch, bodies)
                    return expect + 1
                if not self._fold():  # who was first there says in its line what became of the run
                    reason = f"what has its place, {self._key()}, is no line that follows"
                    raise DamagedLog(self.location, expect + 1, self._chain.offset, reason)

    def _create(self, line: bytes) -> bool:
        """Put the line at its place; whether it is there now. An answer that was lost is looked up."""
        key = self._key()
        try:
            if self._store.create(key, line):
                return True
        except StorageError as error:
            try:
                found = self._store.get(key)
            except StorageError as second:
                raise IndeterminateAppend(f"{self.location}: {error}. Whether it was recorded is unknown") from second
            if found is None:
                raise
        else:
            found = self._store.get(key)  # a client that repeats a call after a lost answer meets its own line
        return found == line

    def _check_exists(self) -> None:
        """Without a first line there is no run: others that stand there are what is left of a deletion."""
        if not self._chain.next_position and self._store.get(self._first) is None:
            self._chain = Chain(self.run_id)
            raise ObjectNotFound(f"there is no run {self.run_id} in {self._store.location}")

    def _check_first(self) -> None:
        """Forget what was folded when the run was deleted meanwhile, and perhaps made again."""
        self._next_look = time.monotonic() + _LOOK_AGAIN
        if self._chain.next_position:
            first = self._store.get(self._first)
            parsed = None if first is None else parse_line(first.removesuffix(b"\n"))
            if parsed is None or parsed[0] != self._chain.checksums[0]:
                self._chain = Chain(self.run_id)

    def _fold(self, start: int | None = None) -> list[Line]:
        """Take what was appended since the last look; gives the accepted lines from `start` on, old ones as well."""
        if self._half:
            self._chain = Chain(self.run_id)
        chain, lines = self._chain, []
        known = chain.next_position
        start = known if start is None else min(start, known)
        self._half = True
        for key, value in self._store.scan(self._prefix, f"{self._prefix}{start:010d}"):
            line = value if value.endswith(b"\n") else value + b"\n"
            position = key[len(self._prefix) :].partition("-")[0]
            if position.isdecimal() and int(position) < known:
                old = chain.known_line(int(position), line[:-1])
                lines += [] if old is None else [old]
            else:
                lines += chain.feed(line)
        self._half = False
        return lines

    def read(self, position: int, *, foreign: bool = False) -> Reading:
        with self._mutex:
            self._check_first()
            lines = [line for line in self._fold(position) if line.position >= position]
            if len(lines) < self._chain.next_position - position:  # others stand there now, or damage
                self._chain = Chain(self.run_id)
                lines = [line for line in self._fold() if line.position >= position]
            self._check_exists()
            records = records_of(self.run_id, lines, foreign=foreign)
            return Reading(self._chain, records, self._problem())

    def size(self) -> int:
        with self._mutex:
            self._check_first()
            self._fold()
            return self._chain.next_position


class _Lease:
    """The token of this process in one store, and the thread that renews it."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._mutex = threading.Lock()  # guards the fields below
        self._owned = 0
        self._stop = threading.Event()  # of the present thread
        self._thread: threading.Thread | None = None
        self._renewed = 0.0
        self.token: str | None = None

    def own(self) -> str:
        with self._mutex:
            if self.token is None:
                self._sweep()
                token, stop = os.urandom(16).hex(), threading.Event()
                self._renew(token)  # precedes every claim that names it
                thread = threading.Thread(target=self._run, args=(token, stop), name="microflow lease", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # none can be started here
                    self._thread = None
                else:
                    self._thread = thread
                self.token, self._stop = token, stop
            self._owned += 1
            return self.token

    def disown(self, token: str) -> None:
        with self._mutex:
            if token != self.token:
                return  # the parent process's, from before a fork
            self._owned -= 1
            if self._owned:
                return
            thread, self.token, self._thread = self._thread, None, None
            self._stop.set()
            if thread is not None:
                thread.join()  # it takes no lock of ours; after it nothing renews what is removed here
            self._store.remove(f"owners/{token}")

    def _sweep(self) -> None:
        for key, _ in self._store.scan("owners/"):
            if not self._store.is_alive(key[7:]):
                self._store.remove(key)

    def renew_without_thread(self) -> None:
        """Called before each append: renew where no thread does."""
        token = self.token
        if token is None or self._thread is not None:
            return
        if time.monotonic() - self._renewed >= self._store.lease_seconds / 4:
            self._renew(token)

    def _renew(self, token: str) -> None:
        self._renewed = time.monotonic()
        self._store.put(f"owners/{token}", b"%d" % time.time_ns())

    def _run(self, token: str, stop: threading.Event) -> None:
        while not stop.wait(self._store.lease_seconds / 4):
            try:
                self._renew(token)
            except StorageError:  # the next one may do; who misses them all is fenced when it is taken over
                continue


class KeyQueue:
    """What waits to be claimed (see ``_queue.py``), as keys."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store

    def put(self, run_id: str) -> None:
        """Have the run looked at. Twice is once."""
        self._store.create(f"queue/{check_run_id(run_id)}", b"%d" % time.time_ns())

    def stamp(self) -> int:
        """The moment of the last change: always now, since nothing notes it."""
        return time.time_ns()

    def names(self) -> set[str]:
        """The ids of all entries."""
        return set(self.list())

    def list(self) -> list[str]:
        """The ids of all entries, the longest waiting first."""
        found = [(int(value) if value.isdigit() else 0, key[6:]) for key, value in self._store.scan("queue/")]
        return [run_id for _, run_id in sorted(found) if RUN_ID.fullmatch(run_id)]

    def take(self, run_id: str) -> bool:
        """Remove an entry; whether it was there."""
        return self._store.remove(f"queue/{check_run_id(run_id)}")


class KeyDocuments:
    """Small documents that are replaced as a whole (see ``_documents.py``), as keys."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store

    def put(self, name: str, data: bytes) -> None:
        """Write a document, in place of the one that has this id."""
        self._store.put(f"deployments/{check_run_id(name)}", data)

    def get(self, name: str) -> bytes | None:
        """The document of that id; None when there is none."""
        return self._store.get(f"deployments/{check_run_id(name)}")

    def list(self) -> list[str]:
        """The ids of all documents."""
        return [key[12:] for key, _ in self._store.scan("deployments/") if RUN_ID.fullmatch(key[12:])]

    def remove(self, name: str) -> bool:
        """Remove a document; whether it was there."""
        return self._store.remove(f"deployments/{check_run_id(name)}")

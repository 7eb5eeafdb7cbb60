# SPDX-License-Identifier: Apache-2.0
"""The state log: what a log file holds, how it is read, and how one line is appended.

A run is a log. Whoever appends the next line at the expected position decides what happened; a line
counts for everybody or for nobody, whatever is killed and whenever. No server and no database helps,
and no lock is needed for that to be true: **the reader's rule is the safety argument**. Each line names
its number and the checksum of the line before it; of two lines written for the same place only the
first fits, and every reader sees the same one as the first. The lock of the writer saves wasted work.


What does not work, and why
---------------------------
* *Append and hope.* Two processes that both read "next is 7" would both be believed. Hence ``q``, ``p``.
* *A lock alone.* It can be lost (network file systems) or outlived (a process stopped in the middle of
  its turn, continued an hour later). Hence the claim number ``e``, checked at the append *and* by readers.
* *Several lines for one transition.* kill -9 falls between them. Hence one line, one ``write``, one atom.
* *Cutting off a torn tail.* What looks torn may be a whole line that only lacks its LF, which its writer
  or a reader may go by. A tail is never cut but sealed: one LF is written, then the tail is read again.
  Sealing and appending in one write is wrong as well: the line may be written for a place that the
  tail, now a whole line, has just taken.
* *Writing the rest after a short write.* The disk is full; somebody's line would stand between the halves.
  A short write is undone (cut back under the lock); if that fails too, this handle is never used again.
* *Asking fsync again after it failed.* The system has marked the lost pages clean, so it answers "done".
* *Repairing damage in the middle.* Lost lines cannot be guessed. Such a log is readable up to the damage
  and nothing is ever appended to it.


The grammar
-----------
A log is a sequence of lines, each ended by one LF (0x0A); what follows the last LF is a torn tail::

    log    = *( line LF ) [ tail ]
    line   = record-line / anything else, which is a dead line
    record-line = '{"q":' INT ',"p":"' HEX8 '"' [',"e":' INT] ',"t":' INT ',"b":[' RECORD *(',' RECORD) ']'
                  ',"c":"' HEX8 '"}'

    {"q":12,"p":"89abcdef","e":1,"t":1763690000000000,"b":[{"k":"state","to":"RUNNING"}],"c":"0123abcd"}

=====  ================================================================================================
q      sequence number (its *position*), from 0, growing by 1
p      ``c`` of the accepted line before; for q = 0 the CRC-32 of the run id's 36 ASCII characters
e      claim number (*epoch*) of the writer; absent when the writer does not own the run (a *request*)
t      the writer's wall clock in microseconds since 1970; a comment, nothing is decided by it
b      the records of ONE transition; never empty; all of them count or none
c      CRC-32 (zlib) of all bytes of the line before ``,"c":"``; the last 16 bytes are ``,"c":"xxxxxxxx"}``
=====  ================================================================================================

HEX8 is eight lower-case digits. A line is at most 1 MiB with its LF, holds only the bytes 0x20 to 0x7E,
and is one JSON object, nested at most 100 deep, without NaN, Infinity or a name that stands twice in one
object. A writer keeps ``,"c":"`` out of ``b`` (it writes that name ``"\\u0063"``): no cut-off line ends
like a whole one. A reader ignores members beside these six.

A RECORD is an object whose ``k`` is its kind: run, claim, release, state, task, rename, input, note.
``"o":1`` marks a record that a reader may skip when it does not know the kind. Six things matter here:

* Line 0 starts with ``{"k":"run","format":"microflow","version":1,"reader":1,"writer":1,"id":RUN_ID,…}``.
  ``reader`` and ``writer`` are the versions that one must know to read and to append; this is version 1.
* A *claim line* has ``claim`` as its first record (on line 0: as its second), with ``owner`` (a token),
  ``pid`` and ``host``, and as ``e`` the epoch before it plus 1. The epoch is 0 before any claim.
* ``release``, in a line with the current epoch: the owner lets go. Nobody owns the run, the epoch stays.
* ``note``: what happened around a task run (``run``) without changing its state. ``what`` is ``committed`` (its
  transaction), ``rolled_back`` (likewise; listed among the states) or ``asset`` (an asset event); a reader ignores
  others. ``at`` is the time in microseconds.
* An unknown kind without ``"o":1``, or ``reader`` above 1: the log is too new. What stands before that
  line can be read; nothing is appended.
* ``writer`` above 1: it can be read; nothing is appended.


The reader's rule
-----------------
A reader keeps the number it expects next, ``c`` of the last accepted line, the epoch, and the ``c`` of
all orphans. For each line that is ended by LF, in file order:

1. no record-line, or as line 0 without the header of this run: **dead**, ignored
2. ``p`` is an orphan's ``c``: **orphan** (a branch that lost stays lost)
3. ``q`` is the expected number and ``p`` the last ``c``: **accepted**, it has its place in the chain. If its
   ``e`` is there but neither the current epoch nor that of a valid claim line it is **void**: it changes
   nothing (its writer had lost the run). Else its records have happened.
4. ``q`` is lower: the accepted line of that number once more (same ``c``) is a **duplicate**, others orphans
5. ``q`` is the expected number, ``p`` another: orphan
6. ``q`` is higher: a **gap**, lines are missing, until the chain reaches that ``q`` after all

================  =====================================================================================
CLEAN             the log ends with an accepted line (orphans and duplicates may follow)
TORN              it ends with a tail without LF: a writer was killed. Ignored by readers
SUSPECT           a dead line follows the last accepted one: a tail that was sealed, or a rotten disk
CORRUPT           a gap, or a dead line after the last accepted one that ends like a whole line does,
                  which no tail can: acknowledged lines were damaged or lost. Never appended to
================  =====================================================================================

So every byte prefix of a log is a log, with a prefix of its history. A file without an accepted line 0 is
a run that was never created (its creator was killed), unless it is CORRUPT.


How a line is appended (:meth:`Log.append`)
-------------------------------------------
1. Encode the records; for a request, of which many may wait at once, fold what others wrote meanwhile. Neither
   needs the lock.
2. Lock. Fold again up to the end of the file. CORRUPT or too new: raise, never write.
3. If there is a tail: write one LF, then fold again, for the tail may have been a whole line.
4. Is the epoch still the writer's (else Fenced), the position the expected one (else Conflict)?
5. Write the line, in one call. Fell short or failed: cut back to the old end and raise NoSpace or
   StorageError, nothing has happened. Could not cut back: IndeterminateAppend, and this handle is poisoned.
6. Account for the own line, which need not be read again; unlock.

:meth:`Log.sync` waits until lines are on the disk. One call serves all threads that wait (the first
leads, the others follow). If it fails, the handle is poisoned: it never appends or syncs again.


Known holes
-----------
CRC-32 is no signature: who may write to the folder can forge history. A CRC that agrees by chance (one in
4 billion) with an orphan's ends the chain there. Bit rot in the last 17 bytes of the last line cannot be
told from a torn tail. An owner that appends after its own ``release`` is believed until the next claim. What
is appended in the second after another process deleted the log is deleted as well.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from ._chain import (
    CLEAN,
    CORRUPT,
    FORMAT,
    FORMAT_VERSION,
    KINDS,
    MAXIMUM_LINE,
    SUSPECT,
    TORN,
    Chain,
    Line,
    encode_bodies,
    encode_line,
    join,
    parse_line,
)
from ._ledger import Ledger, records_of
from .exceptions import (
    IndeterminateAppend,
    LogError,
    ObjectNotFound,
    StorageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._media import FileMedium, MemoryMedium
    from .events import Record

    Body = dict[str, Any]

__all__ = [
    "CLEAN", "CORRUPT", "FORMAT", "FORMAT_VERSION", "KINDS", "MAXIMUM_LINE", "SUSPECT", "TORN",
    "Chain", "Line", "Log", "Reading", "encode_line", "parse_line",
]  # fmt: skip


T = TypeVar("T")


class Reading:
    """What a log says from one position on.

    ``records`` are those of all lines that count, up to the end or to the first damage; ``position`` is the
    number of the next line; ``problem`` is None or the exception that says why there may be more.
    """

    __slots__ = ("epoch", "owner", "owner_host", "owner_pid", "position", "problem", "records", "status")

    def __init__(self, chain: Chain, records: list[Record], problem: LogError | None) -> None:
        self.records = records
        self.position = chain.next_position
        self.epoch = chain.epoch
        self.owner = chain.owner
        self.owner_pid = chain.owner_pid
        self.owner_host = chain.owner_host
        self.status = chain.status
        self.problem = problem

    def check(self) -> Reading:
        """Raise ``problem`` if there is one; gives the reading itself otherwise."""
        if self.problem is not None:
            raise self.problem
        return self


# ------------------------------------------------------------------------------------ the open log


class Log(Ledger):
    """One open log: the protocol of the essay above, over the bytes that `medium` holds.

    Any thread may call any method. A KeyboardInterrupt may end a call anywhere: what it leaves half
    done in memory is thrown away and folded anew from the bytes.
    """

    def __init__(self, run_id: str, medium: FileMedium | MemoryMedium) -> None:
        super().__init__(run_id, medium.location)
        self._medium = medium
        # Guards all fields below and the medium. Taken before the lock on the file, given back after it.
        self._mutex = threading.Lock()
        self._sync_ended = threading.Condition(self._mutex)
        self._poison: BaseException | None = None  # once set, never cleared
        self._synced = 0  # all lines before this position are on the disk
        self._syncing = False  # a leader flushes, without the mutex
        self.is_written = False  # somebody has appended, or tried to, through this object

    # -- append

    def append(self, bodies: Sequence[Body], expect: int, epoch: int | None = None, time_us: int | None = None) -> int:
        """Append one line at position `expect` (0 makes the log), or raise; gives the next position.

        Raises IndeterminateAppend, DamagedLog, LogFormatTooNew, Fenced, Conflict, RecordTooLarge,
        SerializationError, StorageError or NoSpace: whatever it is, but for the first, nothing was recorded.
        """
        text = encode_bodies(bodies)
        if time_us is None:
            time_us = time.time_ns() // 1000
        medium, is_claim = self._medium, bodies[0]["k"] == "claim"
        with self._mutex:
            self.is_written = True
            if self._poison is not None:
                self._check_poison()
            try:
                if not expect or is_claim or not medium.can_append():
                    self._open(writable=True, create=expect == 0, look=is_claim)
                if epoch is None:
                    self._fold()  # once without the lock, so that many who wait do not read under it
                try:
                    self._lock()
                    chain, end = self._chain, medium.size()
                    if not chain.sound_end == chain.offset == end or self._half:
                        end = self._fold_and_seal()  # else nothing came since the last line of ours: sound is sound
                        chain = self._chain
                    if epoch != chain.epoch or expect != chain.next_position or not expect or is_claim:
                        self._check_turn(bodies, expect, epoch)
                    line = join(expect, chain.checksum, epoch, time_us, text)
                    medium.write(line, end)
                    self._account(line, epoch, bodies)
                finally:
                    medium.unlock()  # harmless if the lock was not obtained
            except IndeterminateAppend as error:
                self._poison = error
                raise
            except OSError as error:
                raise medium.explain(error) from error
        return expect + 1

    def _open(self, *, writable: bool, create: bool = False, look: bool = False) -> None:
        medium = self._medium
        if medium.ready(writable=writable, create=create):
            self._recognise()
        if (look or not writable or not medium.can_append()) and medium.is_gone():
            medium.rest()  # deleted, or replaced by another file: what has the name now?
            medium.ready(writable=writable, create=create)
            self._recognise()

    def _recognise(self) -> None:
        """After the file was opened again: forget what was folded unless its last line still stands there."""
        chain = self._chain
        if chain.next_position:
            start = chain.offsets[-1]
            line = self._medium.fetch(start, chain.offset - start)
            if line[-1:] == b"\n" and chain.known_line(chain.next_position - 1, line[:-1]) is not None:
                return
        self._chain = Chain(self.run_id)

    def _lock(self) -> None:
        try:
            self._medium.lock()
        except TimeoutError as error:
            holder = "another process"
            if self._chain.owner is not None:
                holder += f"; the run's owner is process {self._chain.owner_pid} on {self._chain.owner_host}"
            raise StorageError(
                f"{self._medium.location} stays locked ({holder}). Continue or end the process that was stopped"
            ) from error

    def _fold(self, take: Callable[[list[Line]], object] | None = None) -> int:
        """Take what was appended since the last look, and hand it over piece by piece; gives the end of the file."""
        end, chain = self._medium.size(), self._chain
        if self._half or end < chain.offset:  # shorter than it was: restored from a copy
            chain = self._chain = Chain(self.run_id)
        chain.tail = 0
        if chain.offset == end and not self._half:
            return end
        self._half = True
        while chain.offset < end:
            start = chain.offset
            lines = chain.feed(self._medium.fetch(start, min(MAXIMUM_LINE, end - start)))
            if take is not None:
                take(lines)
            if chain.offset == start:
                break  # a tail without LF
        self._half = False
        return end

    def _fold_and_seal(self) -> int:
        end = self._fold()
        self._check_sound()
        if self._chain.is_torn:
            self._medium.write(b"\n", end)
            end = self._fold()  # not to be left out: the tail may have been a whole line, and count
            self._check_sound()
        if self._chain.offset != end:
            raise StorageError(f"{self._medium.location} cannot be read up to its end")
        return end

    def _check_poison(self) -> None:
        if self._poison is not None:
            raise IndeterminateAppend(
                f"{self._medium.location} is not used any more, since an earlier write or sync failed: {self._poison}"
            ) from self._poison

    # -- read

    def read(self, position: int = 0, *, foreign: bool = False) -> Reading:
        """The records from `position` on; `foreign` leaves out the lines that were appended through this object.

        Writes nothing. ObjectNotFound if the run was never created. Damage does not raise: see :class:`Reading`.
        """
        with self._mutex:
            try:
                self._open(writable=False)
                records = self._records_from(position, foreign)
                if records is None:  # the bytes have changed under us: what do they say now?
                    self._chain = Chain(self.run_id)
                    records = self._records_from(position, foreign) or []
            except OSError as error:
                raise self._medium.explain(error) from error
            problem = self._problem()
            if not self._chain.next_position and problem is None:
                raise ObjectNotFound(f"run {self.run_id} was never created: {self._medium.location} has no first line")
            return Reading(self._chain, records, problem)

    def _records_from(self, position: int, foreign: bool) -> list[Record] | None:
        """The records from `position` on: of new lines by folding, of those before them by their offsets.

        None if there are other bytes now at one of those offsets.
        """
        fresh: list[Record] = []

        def take(lines: list[Line]) -> None:
            # at once, so that lines do not pile up: the collector of garbage would look through them again and again
            fresh.extend(records_of(self.run_id, lines, position, foreign=foreign))

        known = self._chain
        stop = known.next_position
        self._fold(take)
        if self._chain is not known:
            stop = 0  # folded anew from the first line
        older = self._older_lines(position, stop)
        return None if older is None else records_of(self.run_id, older, foreign=foreign) + fresh

    def _older_lines(self, position: int, stop: int) -> list[Line] | None:
        chain, lines = self._chain, []
        while position < stop:
            start, first = chain.offsets[position], position
            end = chain.offsets[stop] if stop < chain.next_position else chain.offset
            data = self._medium.fetch(start, min(MAXIMUM_LINE, end - start))
            while position < stop and (lf := data.find(b"\n", chain.offsets[position] - start)) >= 0:
                line = chain.known_line(position, data[chain.offsets[position] - start : lf])
                if line is None:
                    return None
                lines.append(line)
                position += 1
            if position == first:
                return None
        return lines

    # -- sync, close

    def sync(self, position: int) -> None:
        """Return when all lines before `position` are on the disk. One flush serves all threads that wait."""
        if self._synced >= position:  # it never gets less
            return
        with self._sync_ended:
            while self._synced < position:
                self._check_poison()
                if self._syncing:
                    self._sync_ended.wait()
                else:
                    self._lead_sync(position)

    def _lead_sync(self, position: int) -> None:
        self._syncing = True
        try:
            goal, descriptor = self._goal(position)
            self._mutex.release()  # others append while the disk works
            try:
                self._flush(descriptor)
            finally:
                self._mutex.acquire()
        finally:
            self._syncing = False
            self._sync_ended.notify_all()
        self._check_poison()
        self._synced = goal

    def _goal(self, position: int) -> tuple[int, int]:
        """Up to where the next flush serves, and what is to be flushed."""
        try:
            self._open(writable=False)
            self._fold()
            goal = self._chain.next_position
            if goal < position:
                raise ValueError(f"run {self.run_id} is at position {goal}: there is nothing to sync up to {position}")
            return goal, self._medium.second_descriptor()
        except OSError as error:
            raise self._medium.explain(error) from error

    def _flush(self, descriptor: int) -> None:
        try:
            self._medium.flush(descriptor)
        except OSError as error:
            # Asking again would be answered with "done": the system has given up the pages that it could not write.
            self._poison = error

    def rest(self) -> None:
        """Close the file until it is needed again, unless the log is in use right now."""
        if self._mutex.acquire(blocking=False):
            try:
                self._medium.rest()
            finally:
                self._mutex.release()

    def close(self) -> None:
        """Close the file. (A later call would open it again.)"""
        with self._mutex:
            self._medium.rest()

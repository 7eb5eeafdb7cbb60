# SPDX-License-Identifier: Apache-2.0
"""The rules of an append, whatever holds the lines: who may write the next one, and what keeps everybody from it.

``log.py`` keeps the lines of a run in one file, ``key_stores.py`` each under a key of its own. Both fold them into a
:class:`Chain`, and both ask here before they write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._chain import FORMAT_VERSION, Chain
from .events import Record
from .exceptions import Conflict, DamagedLog, Fenced, LogError, LogFormatTooNew

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._chain import Line

    Body = dict[str, Any]


class Ledger:
    """The lines of one run, as far as they were folded. Whoever derives from it guards it with a mutex."""

    def __init__(self, run_id: str, location: str) -> None:
        self.run_id = run_id
        self.location = location  # in messages
        self._chain = Chain(run_id)
        self._half = False  # the chain is being changed: after an interrupt it may be half changed

    def _check_sound(self) -> None:
        """Nothing may be written to a log that is damaged or newer than we are (L17, L18)."""
        problem = self._problem()
        if problem is not None:
            raise problem
        if self._chain.writer > FORMAT_VERSION:
            raise LogFormatTooNew(
                f"appending to {self.location} needs format version {self._chain.writer}, "
                f"this is version {FORMAT_VERSION}: use a newer microflow"
            )

    def _problem(self) -> LogError | None:
        damage, location = self._chain.damage, self.location
        if damage is not None:
            return DamagedLog(location, *damage)
        if self._chain.too_new:
            return LogFormatTooNew(
                f"{location}: {self._chain.too_new}; this is version {FORMAT_VERSION}: use a newer microflow"
            )
        return None

    def _check_turn(self, bodies: Sequence[Body], expect: int, epoch: int | None) -> None:
        """Whether these records may be appended now, by this writer."""
        chain, claim = self._chain, self._chain.claim_in(bodies)
        if claim is None:
            self._check_fence(epoch)
        if chain.next_position != expect:
            raise Conflict(f"run {self.run_id} is at position {chain.next_position}, not {expect}: read what was added")
        if chain.is_void(epoch, bodies):
            raise ValueError(f"epoch {epoch} does not follow from the current one, {chain.epoch}: {bodies[0]!r}")
        if expect == 0 and not chain.is_header(bodies[0]):
            raise ValueError(f"a log begins with the header of run {self.run_id}, not with {bodies[0]!r}")

    def _check_fence(self, epoch: int | None) -> None:
        if epoch is not None and self._chain.epoch > epoch:
            chain = self._chain
            holder = f"of process {chain.owner_pid} on {chain.owner_host}" if chain.owner else "which has ended since"
            raise Fenced(
                f"this process lost run {self.run_id}: its claim was number {epoch}, the current one is number "
                f"{chain.epoch}, {holder}"
            )

    def _account(self, line: bytes, epoch: int | None, bodies: Sequence[Body]) -> None:
        self._half = True
        self._chain.accept_own(line, epoch, bodies)
        self._half = False


def records_of(run_id: str, lines: Iterable[Line], start: int = 0, *, foreign: bool = False) -> list[Record]:
    """What these lines of a run say, those from position `start` on; `foreign` leaves out those that were appended
    through this very ledger."""
    return [
        Record(run_id, line.position, line.epoch, line.time, body["k"], body)
        for line in lines
        if line.position >= start and not (line.void or (foreign and line.own))
        for body in line.bodies
    ]

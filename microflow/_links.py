# SPDX-License-Identifier: Apache-2.0
"""Which run a plain value came from.

Goal: ``second(first())`` is recorded as depending on the run of ``first``, although what is handed over is a plain
value. The only thing to go by is the identity of the object, so a flow run remembers ``id()`` of what its runs
returned.

What does not work: keeping the values, which keeps memory that the user meant to give back; trusting an id alone,
which is used again once its object is gone. So each entry has a way to tell whether an object of that id is still the
one: a weak reference; the object itself if it is a small scalar or holds only few of them; else its type and the
identity of its first member.

Known holes: a large list, dict or text that is gone and whose address, type and first member are met again is taken
for the old one. Of a container only its first :data:`MOST_MEMBERS` members are remembered, of an argument at most
:data:`MOST_LOOKS` objects looked at, of all results the latest :data:`MOST_LINKS`. Nothing but ``task_inputs`` goes
by what is found here: no call is recognised, waited for or handed back by it.
"""

from __future__ import annotations

import weakref
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ._containers import members_of, quote
from .client.objects import FlowRunResult, TaskRunResult

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    Source = TaskRunResult | FlowRunResult

MOST_LINKS = 10_000
MOST_MEMBERS = 20
MOST_LOOKS = 1_000

#: one object for all who use the value: nothing can be concluded from meeting it
_SHARED = frozenset({type(None), bool, type(Ellipsis), type(NotImplemented)})
_NUMBERS = frozenset({int, float, complex})
_TEXTS = frozenset({str, bytes})
_LEAVES = _SHARED | _NUMBERS | _TEXTS
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
SMALL = 100  # characters or bytes of a text that is kept to tell it from others


class Links:
    """What the runs of one flow run returned. Any thread may call any method: each is a few operations of dicts."""

    __slots__ = ("_entries", "_live", "_older")

    def __init__(self) -> None:
        # id -> run, its kind, and what tells whether an object of that id is still the one: itself, a weak reference,
        # or a _Look. When there are too many the older half is dropped: popping the oldest of a dict takes ever longer.
        self._entries: dict[int, tuple[UUID, type[Source], object]] = {}
        self._older = self._entries
        self._live: set[UUID] = set()

    def may_know(self, values: Iterable[Any]) -> bool:
        """Whether any of these, or what stands in it, might have come from a run. False is certain, and fast."""
        entries, older = self._entries, self._older
        if not entries:  # the older half is never alone
            return False
        if self._live or not _LEAVES.issuperset(map(type, values)):
            return True
        for value in values:  # noqa: SIM110 - as in _chain
            if id(value) in entries or id(value) in older:
                return True
        return False

    def add(self, value: Any, run_id: UUID, kind: type[Source] = TaskRunResult) -> None:
        """Remember that `value`, and what stands directly in it, came from the run `run_id`, a task run unless `kind`
        says otherwise."""
        of = type(value)
        self._add(value, of, run_id, kind)
        if of in _CONTAINERS and value:
            for member in islice(value.values() if of is dict else value, MOST_MEMBERS):
                self._add(member, type(member), run_id, kind)

    def add_yielded(self, value: Any, run_id: UUID) -> None:
        """The same for a value of a run that goes on: it is a parent of calls with that value until :meth:`ended`."""
        self._live.add(run_id)
        self.add(value, run_id)

    def ended(self, run_id: UUID) -> None:
        """The run that yielded values is over."""
        self._live.discard(run_id)

    def _add(self, value: Any, of: type, run_id: UUID, kind: type[Source]) -> None:
        if of is int:
            if -6 < value < 257:  # there is one object for each of these
                return
            mark = value
        elif of in _SHARED:
            return
        else:
            mark = _mark(value, of)
        entries = self._entries
        if len(entries) >= MOST_LINKS // 2:
            self._older, self._entries = entries, {}
            entries = self._entries
        entries[id(value)] = run_id, kind, mark

    def source_of(self, value: Any) -> Source | None:
        """The run that this very object came from."""
        key = id(value)
        entry = self._entries.get(key) or self._older.get(key)
        if entry is None:
            return None
        run_id, kind, mark = entry
        if mark is value or (type(mark) is _Reference and mark() is value):
            return kind(id=run_id)
        if type(mark) is _Look and mark == _Look.of(value):
            return kind(id=run_id)
        self._entries.pop(key, None)
        self._older.pop(key, None)
        return None

    def sources_in(self, value: Any) -> list[Source]:
        """The runs that an argument, or what stands inside of it, came from, each once. Nothing inside ``quote`` is
        looked at, and what is found is not searched."""
        key = id(value)
        if key in self._entries or key in self._older:
            source = self.source_of(value)
            if source is not None:
                return [source]
        if type(value) in _LEAVES:
            return []
        stack = _members(value)
        found: dict[Source, None] = {}
        seen: set[int] = set()
        while stack and len(seen) < MOST_LOOKS:
            node = stack.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            source = self.source_of(node)
            if source is None:
                stack.extend(_members(node))
            else:
                found[source] = None
        return list(found)

    @property
    def has_live(self) -> bool:
        """Whether any run that yielded values goes on."""
        return bool(self._live)

    def live_parent(self, value: Any) -> Source | None:
        """The run that yielded this object and still goes on: a generator between two of its values."""
        source = self.source_of(value)
        return source if source is not None and source.id in self._live else None


def _members(value: Any) -> list[Any]:
    """What stands in a value, the last first: at most as many as are looked at."""
    kind = type(value)
    if kind in _LEAVES or isinstance(value, quote):
        return []
    if kind in _CONTAINERS:
        members = chain.from_iterable(value.items()) if kind is dict else value
        return list(islice(members, MOST_LOOKS))[::-1]
    return members_of(value)[MOST_LOOKS::-1]


def _mark(value: Any, kind: type) -> object:
    """What tells whether an object of the same id is still this one."""
    if kind in _NUMBERS or (kind in _TEXTS and len(value) <= SMALL) or _is_small_container(value, kind):
        return value
    try:
        return _Reference(value)
    except TypeError:
        return _Look.of(value)


def _is_small_container(value: Any, kind: type) -> bool:
    if kind not in _CONTAINERS or len(value) > MOST_MEMBERS:
        return False
    members = (*value, *value.values()) if kind is dict else value
    return all(
        type(member) in _NUMBERS or type(member) in _SHARED or (type(member) in _TEXTS and len(member) <= SMALL)
        for member in members
    )


class _Reference(weakref.ref[Any]):
    """A weak reference of ours: one that a user's task returned is a value like any other."""

    __slots__ = ()


class _Look(tuple[type, object]):
    """The looks of an object that can neither be kept nor referred to: its type, and how it begins."""

    __slots__ = ()

    @classmethod
    def of(cls, value: Any) -> _Look:
        """A large text by its length and end, a container by its first member, others by their type alone."""
        kind = type(value)
        if kind in _TEXTS:
            return cls((kind, (len(value), value[-SMALL:])))
        return cls((kind, id(next(iter(value))) if kind in _CONTAINERS and value else None))

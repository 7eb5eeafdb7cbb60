# SPDX-License-Identifier: Apache-2.0
"""Values that are kept in the log of their run, so that a re-execution can hand them back.

A result is *kept* (on by default, ``MICROFLOW_KEEP_RESULTS``), which is not *persisted* (``results``):
up to 16 KiB inline in the record of the final state, larger ones in a result file named by its SHA-256,
written before the record that names it. Over 1 MiB nothing is kept, with one warning, but for what is
to be persisted anyway. Tagged JSON comes first; pickle only where JSON cannot carry the value. A value
that cannot be kept never fails a task: the run completes without a kept result, and a re-execution runs
it again.
"""

from __future__ import annotations

import json
import warnings
from binascii import a2b_base64, b2a_base64
from typing import TYPE_CHECKING, Any

from ._tagged_json import add_tag
from ._typing_only import Protocol
from .exceptions import MissingResult, NoSpace, SerializationError, StorageError
from .serializers import default_resolver, import_resolver, pack, to_json, unpack
from .states import State, Value

if TYPE_CHECKING:
    from collections.abc import Callable

INLINE_LIMIT = 16 * 1024
KEEP_LIMIT = 1024 * 1024

_PLAIN = frozenset({bool, type(None)})
_ATOMS = frozenset({bool, int, float, str})
_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_warned: set[str] = set()


class ResultFiles(Protocol):
    """What this module asks of a store."""

    @property
    def private(self) -> bool:
        """Whether only this user can have written what the store holds."""

    def put_result(self, run_id: str, data: bytes) -> str:
        """Write a result file and return its name."""

    def get_result(self, run_id: str, name: str, size: int) -> bytes:
        """Read a result file back."""


def keep(
    value: Any, run_id: str, store: ResultFiles, name: str, what: str | None = "result", *, whole: bool = False
) -> dict[str, Any] | None:
    """The record member that keeps `value`, or None when it cannot be kept. May write a result file,
    which happens before the caller appends the record: a record never names a file that is not there.
    `name` is the task's or flow's, for the warning, which also says `what` is not kept; None for no warning.
    `whole` keeps what is larger than the limit, too. NoSpace when there is no room for it."""
    kind = type(value)
    if kind in _PLAIN or (kind is int and -(1 << 53) < value < 1 << 53) or (kind is str and len(value) < 1024):
        return {"json": value}  # what most tasks return needs no second look (saves 3 µs of 60 per task)
    try:
        data = to_json(value)
        text = _dumps(data)
        if len(text) <= INLINE_LIMIT:
            return {"json": data}
        form, packed = "json", text.encode("ascii")
    except (SerializationError, ValueError):
        try:
            form, packed = pack(value)
        except SerializationError as problem:
            _warn(what, name, f"cannot be kept for re-execution: {problem}")
            return None
        if len(packed) <= INLINE_LIMIT:
            return {form: b2a_base64(packed, newline=False).decode("ascii")}
    if len(packed) > KEEP_LIMIT and not whole:
        _warn(what, name, f"has {len(packed):,} bytes, more than the {KEEP_LIMIT:,} that are kept for re-execution")
        return None
    try:
        return {"file": store.put_result(run_id, packed), "size": len(packed), "format": form}
    except NoSpace:
        raise
    except StorageError as problem:
        _warn(what, name, f"cannot be kept for re-execution: {problem}")
        return None


_CONSEQUENCES = {
    "result": "A re-execution will run the call again.",
    "parameters": "The run cannot be run again by another process.",
}


def _warn(what: str | None, name: str, problem: str) -> None:
    """Say it once for each task: a mapped task would say it ten thousand times. Where warnings are errors it is
    logged instead: raised here, between the user's code and the append, it would cost the run its end."""
    if what is None or (key := f"{what} {name}") in _warned:
        return
    _warned.add(key)
    text = f"the {what} of {name!r} {problem}. {_CONSEQUENCES[what]}"
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        import logging  # loaded only when there is something to say

        logging.getLogger(__name__).warning(text)


def _parts_of_state(state: State[Any]) -> dict[str, Any]:
    data = state.data.load() if isinstance(state.data, Value) else state.data
    parts = {"type": state.type.value, "name": state.name, "message": state.message, "at": state.at}
    return {**parts, "details": state.state_details.given(), "data": [data] if state.data is not None else []}


def _state_from(parts: dict[str, Any]) -> State[Any]:
    """The state again; its value in a :class:`Value`, an exception bare, as engines make them."""
    state: State[Any] = State(parts["type"], parts["name"], parts["message"], state_details=parts["details"])
    state.at = parts["at"]
    for data in parts["data"]:
        state.data = data if isinstance(data, BaseException) else Value(data)
    return state


# a run that returns states, as those of a map, is kept as JSON like any other
add_tag("state", State, _parts_of_state, _state_from)


class KeptResult(Value[Any]):
    """A result that is loaded from the log or its file each time it is asked for."""

    __slots__ = ("_entry", "_run_id", "_store", "of")

    kept_whole = True  # it was, where it comes from

    def __init__(self, entry: dict[str, Any], run_id: str, store: ResultFiles) -> None:
        self._entry = entry
        self._run_id = run_id
        self._store = store
        #: the name of the task run whose result it is, for errors to say
        self.of = ""

    @property
    def entry(self) -> dict[str, Any]:
        """The record member that keeps the value."""
        return self._entry

    def entry_for(self, run_id: str) -> dict[str, Any] | None:
        """The record member as it may stand in the log of `run_id`; None when its file is another run's."""
        return None if "file" in self._entry and run_id != self._run_id else self._entry

    def document(self) -> Any:
        """The tagged JSON of a value that is kept as such, as it stands; nothing is rebuilt from it."""
        if "json" in self._entry:
            return self._entry["json"]
        return json.loads(self._store.get_result(self._run_id, self._entry["file"], self._entry["size"]))

    def load(self, resolve: Callable[[str, str], Any] = import_resolver) -> Any:
        """The value. MissingResult when its file is gone or damaged; SerializationError when it cannot be
        rebuilt here. Pickles are opened, and modules that a value names imported (`resolve`), only when nobody else
        can have written the store."""
        entry = self._entry
        if type(entry.get("json")) in _ATOMS:
            return entry["json"]  # as it stands: it names nothing, and nobody can change it
        private = self._store.private
        if not private:
            resolve = default_resolver
        if "json" in entry:
            data, form = _dumps(entry["json"]).encode("ascii"), "json"
        elif "pickle" in entry:
            data, form = a2b_base64(entry["pickle"]), "pickle"
        elif "file" in entry:
            data, form = self._read(entry), entry["format"]
        else:
            raise MissingResult(f"run {self._run_id} keeps a result in an unknown form: {sorted(entry)}")
        return unpack(form, data, allow_pickle=private, resolve=resolve)

    def _read(self, entry: dict[str, Any]) -> bytes:
        try:
            return self._store.get_result(self._run_id, entry["file"], entry["size"])
        except MissingResult as problem:
            if not self.of:
                raise
            raise MissingResult(f"the result of task run {self.of!r} cannot be read: {problem}") from problem

    def __repr__(self) -> str:
        return f"KeptResult({', '.join(self._entry)})"

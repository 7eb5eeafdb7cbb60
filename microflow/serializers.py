# SPDX-License-Identifier: Apache-2.0
"""Values as JSON, as bytes, and as fingerprints.

:func:`to_json` and :func:`from_json` (from ``_tagged_json``) carry the common types. :func:`pack` gives
bytes, and falls back to pickle for values that this user's own code made. :func:`describe_exception` and
:func:`restore_exception` never fail. :func:`fingerprint` is the identity of a call's inputs.

How a fingerprint is made
=========================

Goal: 16 bytes that are equal for equal inputs in every process, on every Python, whatever the inputs are;
a few microseconds for common ones; never an exception.

What does not work: ``hash`` (differs between processes), pickle (differs between versions, fails on much),
``repr`` (contains addresses), walking every value in Python (slow).

The rule: the hash is that of the value as JSON with sorted keys, written by the encoder in C. For what
JSON has no form for, the encoder asks :func:`_stand_in`: sets become sorted lists, objects their class's
name with their attributes, memory buffers a hash of their bytes, and what shows nothing of itself its
class's name alone. Inputs on which the C encoder fails, or that are nested deeper than 100 levels, are
first copied into a plainer form by :func:`_plain`. Which way is taken depends on the value only.

What counts as equal: a tuple and the list of its members; a dict key and its JSON text (``1`` and ``"1"``);
a subclass of int, str, dict, list and its base. Module names of classes do not count, because the same
script is ``__main__`` in one process and has its own name in the next.

Known holes: objects that show neither attributes nor a buffer are equal to all others of their class. On a
stack that is nearly full the C encoder fails early, and the fingerprint is another one: the call runs again.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import deque
from datetime import date, time
from enum import Enum
from functools import lru_cache, partial
from itertools import accumulate
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from ._stored_exceptions import OriginalTraceback, RestoredError, describe, restore, text_of
from ._tagged_json import (
    MAX_BITS,
    MAX_DEPTH,
    NotEncodable,
    default_resolver,
    from_json,
    import_resolver,
    to_json,
)
from .exceptions import SerializationError

try:
    from _blake2 import blake2b  # hashlib has the same function, but loads OpenSSL first (3 ms)
except ImportError:  # pragma: no cover
    from hashlib import blake2b

if TYPE_CHECKING:
    from collections.abc import Callable

    Resolver = Callable[[str, str], Any]
    Replace = Callable[[Any], Any]

__all__ = [
    "NotEncodable",
    "OriginalTraceback",
    "RestoredError",
    "default_resolver",
    "describe_exception",
    "fingerprint",
    "from_json",
    "import_resolver",
    "pack",
    "restore_exception",
    "to_json",
    "unpack",
]

_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


# ------------------------------------------------------------------------------------------------ exceptions


def describe_exception(error: BaseException) -> dict[str, Any]:
    """An exception as a JSON object: class, message, args, attributes, notes, causes and traceback as text.

    Never raises. What JSON cannot carry is left out; without its args it comes back as a RestoredError.
    """
    return describe(error, lambda part, _: to_json(part), strict=False)


def restore_exception(described: dict[str, Any], resolve: Resolver | None = None) -> BaseException:
    """The exception that :func:`describe_exception` described, or a RestoredError that says type and message.

    SerializationError only when the description itself is damaged.
    """
    resolve = resolve or default_resolver
    return restore(described, resolve, lambda part: from_json(part, resolve))


# ---------------------------------------------------------------------------------------------------- bytes


def pack(value: Any, *, allow_pickle: bool = True) -> tuple[str, bytes]:
    """``("json", ASCII text)``, or ``("pickle", bytes)`` for what JSON cannot carry.

    NotEncodable when neither can. A pickle that holds an exception was opened once to prove that it opens.
    """
    try:
        return "json", _dumps(to_json(value)).encode("ascii")
    except RecursionError as error:
        raise NotEncodable("the stack is full") from error
    except NotEncodable as problem:
        if not allow_pickle:
            raise
        return "pickle", _pickled(value, problem)


def _pickled(value: Any, problem: NotEncodable) -> bytes:
    import io  # loaded already

    pickler_class, _ = _pickle_classes()
    buffer = io.BytesIO()
    try:
        pickler = pickler_class(buffer, protocol=5)
        pickler.dump(value)
        data = buffer.getvalue()
        if pickler.saw_exception:
            _prove(value, data)
    except Exception as error:  # pickling runs the user's code, which may raise anything
        reason = f"{problem.reason}; and pickle refused: {type(error).__name__}: {error}"
        raise NotEncodable(reason, problem.path) from error
    return data


def _prove(value: Any, data: bytes) -> None:
    """Open a pickle that holds exceptions: pickle calls their classes with ``args``, which may not fit."""
    import pickle  # loaded already, by what made the data

    copy = pickle.loads(data)
    if isinstance(value, BaseException) and text_of(copy) != text_of(value):
        raise SerializationError(f"the exception would come back as {text_of(copy)!r}")


@lru_cache(maxsize=1)
def _pickle_classes() -> tuple[Any, Any]:
    import pickle  # costs 4 ms and is rarely needed

    class Pickler(pickle.Pickler):
        saw_exception = False

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, BaseException):
                self.saw_exception = True
            return NotImplemented

    class Unpickler(pickle.Unpickler):
        resolve: Resolver | None = None

        def find_class(self, module: str, name: str) -> Any:
            return super().find_class(module, name) if self.resolve is None else self.resolve(module, name)

    return Pickler, Unpickler


def unpack(form: str, data: bytes, *, allow_pickle: bool, resolve: Resolver | None = None) -> Any:
    """The value that :func:`pack` packed.

    Opening a pickle can run any code: `allow_pickle` is for data that nobody else can have written. `resolve`
    finds the classes, in a pickle too (without it, a pickle imports what it names). SerializationError, saying
    why, when the value cannot be made.
    """
    if form == "json":
        try:
            written = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise SerializationError(f"stored data is no JSON: {error}") from error
        return from_json(written, resolve)
    if form != "pickle":
        raise SerializationError(f"stored data has the unknown format {form!r}; a newer microflow may know it")
    if not allow_pickle:
        raise SerializationError("stored data is a pickle, which is not opened because others could have written it")
    import io  # loaded already

    _, unpickler_class = _pickle_classes()
    try:
        unpickler = unpickler_class(io.BytesIO(data))
        unpickler.resolve = resolve
        return unpickler.load()
    except Exception as error:  # a pickle runs the user's code, which may raise anything
        raise SerializationError(f"a stored pickle cannot be opened: {type(error).__name__}: {error}") from error


# ---------------------------------------------------------------------------------------------- fingerprints


def fingerprint(value: Any, replace: Replace | None = None) -> bytes:
    """16 bytes that identify `value` by its structure, equal in every process. Never raises.

    ``replace(object)`` is asked first about each object that JSON has no form for; what it returns (plain
    JSON) stands for the object, None means that it has nothing to say. Use one function for all calls: the
    encoder that is made for it is kept. What counts as equal stands at the head of this module.
    """
    try:
        text = _encoder(replace)(value)
        # each level opens a bracket: a text with few of them is not deep
        if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
            text = _plain_text(value, replace)
    except Exception:  # keys of mixed types, cycles, full stacks, or what a value raises when it is read
        text = _plain_text(value, replace)
    return blake2b(text.encode("ascii"), digest_size=16).digest()


_last_encoder: tuple[Replace | None, Callable[[Any], str]] | None = None


def _encoder(replace: Replace | None) -> Callable[[Any], str]:
    """The encoder whose hook asks `replace`. The latest is kept: one tuple, so that threads see both or neither."""
    global _last_encoder
    last = _last_encoder
    if last is not None and last[0] is replace:
        return last[1]
    encode = json.JSONEncoder(
        sort_keys=True,
        separators=(",", ":"),
        default=lambda value: _stand_in(value, replace, encode),
    ).encode
    _last_encoder = (replace, encode)
    return encode


_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_BRACKET = re.compile(r"[\[\]{}]")
_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}


def _depth(text: str) -> int:
    """How deep the brackets of a JSON text stand in each other."""
    brackets = _BRACKET.findall(_STRING.sub("", text))
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _named(kind: str, *parts: Any) -> dict[str, Any]:
    return {"$": kind, "v": parts}


def _stand_in(value: Any, replace: Replace | None, encode: Callable[[Any], str]) -> Any:
    """Plain JSON, or something nearer to it, for an object that JSON has no form for."""
    if replace is not None:
        given = replace(value)
        if given is not None:
            return given
    kind = type(value)
    name = kind.__qualname__
    if isinstance(value, (set, frozenset)):
        return _named("set", *sorted(map(encode, value)))
    if isinstance(value, deque):
        return _named("deque", *value)
    if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
        return _named("code", f"{_module_name(value.__module__)}:{value.__qualname__}")
    if isinstance(value, MethodType):
        return _named("method", value.__func__, value.__self__)
    if isinstance(value, partial):
        return _named("partial", value.func, value.args, value.keywords)
    if isinstance(value, ModuleType):
        return _named("module", _module_name(value.__name__))
    if isinstance(value, (date, time)):
        return _named(name, value.isoformat())
    if isinstance(value, Enum):  # flags that have no name together get one on some Pythons
        return _named(name, value._name_ if value._name_ in kind.__members__ else None, value._value_)
    if hasattr(kind, "__fspath__"):  # paths cache their hash, which differs between processes
        return _named("path", os.fspath(value))
    written = _simple(value)
    return _named(name, *_buffer(value), *_attributes(value)) if written is None else written


def _module_name(name: str | None) -> str | None:
    """The name of a module, also while it runs as ``__main__``: what it is called when it is imported."""
    if name != "__main__":
        return name
    main = sys.modules["__main__"]
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name)
    return re.sub(r".*[/\\]|\.py$", "", path) if path else name


_SIMPLE = frozenset({"timedelta", "uuid", "decimal", "complex", "range", "bytes"})


def _simple(value: Any) -> Any:
    """The tagged JSON of a value that holds no others, or None."""
    if hasattr(type(value), "__dict__") and getattr(value, "__dict__", None):
        return None  # an object with attributes is told apart by those
    try:
        written = to_json(value)
    except NotEncodable:
        return None
    return written if type(written) is dict and written.get("$") in _SIMPLE else None


def _buffer(value: Any) -> list[Any]:
    """Format, shape and a hash of the bytes of an array; nothing for what is none, or holds addresses."""
    try:
        view = memoryview(value)
    except (TypeError, ValueError, BufferError):
        return []
    if set(view.format) & set("OP&X"):  # objects and pointers
        return []
    data = view.cast("B") if view.c_contiguous and view.ndim and view.nbytes else view.tobytes()
    return [view.format, view.shape, blake2b(data, digest_size=16).hexdigest()]


def _attributes(value: Any) -> list[Any]:
    """What an object shows of itself."""
    kind = type(value)
    shown = dict(getattr(value, "__dict__", None) or {})
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = f"_{base.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                shown[name] = getattr(value, name)
    if isinstance(value, BaseException):
        return [value.args, shown]
    return [shown] if shown else []


def _plain_text(value: Any, replace: Replace | None) -> str:
    """The JSON text of :func:`_plain`; the name of the class when even that fails."""
    try:
        return _dumps(_plain(value, replace, []))
    except Exception:  # what a value raises when it is read: its class is all that is left
        return _dumps(_named(type(value).__qualname__))


def _plain(value: Any, replace: Replace | None, above: list[int]) -> Any:
    """`value` as JSON types without dicts, and without what is deeper than 100 levels. `above` are the ids of
    the containers around it: one that stands in itself is named by its distance."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        number = int(value)
        return number if number.bit_length() <= MAX_BITS else _plain_named("int", hex(number))
    if isinstance(value, float):
        return _plain_named("float", float.__repr__(value))
    if id(value) in above:
        return _plain_named("cycle", above[::-1].index(id(value)))
    if len(above) >= MAX_DEPTH:
        return _plain_named(type(value).__qualname__)
    above.append(id(value))
    try:
        if isinstance(value, (list, tuple)):
            return [_plain(member, replace, above) for member in value]
        if isinstance(value, dict):
            pairs = [[_dumps(_plain(key, replace, above)), _plain(value[key], replace, above)] for key in value]
            return _plain_named("dict", sorted(pairs, key=_dumps))

        def encode(member: Any) -> str:
            return _dumps(_plain(member, replace, above))

        return _plain(_stand_in(value, replace, encode), replace, above)
    finally:
        above.pop()


def _plain_named(kind: str, *parts: Any) -> list[Any]:
    return ["$", kind, *parts]

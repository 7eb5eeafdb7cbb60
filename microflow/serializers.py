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

The rule: inputs of plain JSON types, and leaves such as dates, are written as JSON with sorted keys by the
encoder in C, and the text is hashed. Everything else (objects with attributes, keys of mixed types, cycles,
more than 100 levels) takes the long way, :class:`_Walk`: each container is hashed once, from its members'
hashes, so that an object that is reached on a million paths costs no more than on one. Objects count by the
name of their class and their attributes, memory buffers by their bytes, sets by their sorted members, and
what shows nothing of itself by the name of its class alone. Which way is taken depends on the value only.

What counts as equal: a tuple and the list of its members; a dict key and its JSON text (``1`` and ``"1"``);
a subclass of int, str, dict, list and its base. Module names of classes do not count, because the same
script is ``__main__`` in one process and has its own name in the next.

Known holes: objects that show neither attributes nor a buffer are equal to all others of their class, and so
is what stands 100 levels deep, or as an object in a set in a set. On a stack that is nearly full the C
encoder fails early, and the fingerprint is another one: the call runs again.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from datetime import date, time
from enum import Enum
from functools import lru_cache, partial
from itertools import accumulate
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from ._modules import module_name
from ._stored_exceptions import OriginalTraceback, RestoredError, describe, restore, same_text, text_of
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
    "AutoSerializer",
    "CompressedJSONSerializer",
    "CompressedPickleSerializer",
    "CompressedSerializer",
    "JSONSerializer",
    "NotEncodable",
    "OriginalTraceback",
    "PickleSerializer",
    "RestoredError",
    "Serializer",
    "UnknownSerializer",
    "default_resolver",
    "describe_exception",
    "fingerprint",
    "from_json",
    "get_serializer",
    "import_resolver",
    "pack",
    "restore_exception",
    "serializer_from_json",
    "serializer_to_json",
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
    if isinstance(value, BaseException) and not same_text(copy, text_of(value)):
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


# ------------------------------------------------------------------------------------------------- by name


class Serializer:
    """Turns values into bytes and back. A subclass that sets ``type`` can be asked for by that name.

    ``dumps`` raises SerializationError for what it cannot carry."""

    type: str = ""
    _by_name: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "type" in cls.__dict__:
            Serializer._by_name[cls.type] = cls

    def dumps(self, obj: Any) -> bytes:
        """The bytes of a value."""
        raise NotImplementedError

    def loads(self, blob: bytes) -> Any:
        """The value again."""
        raise NotImplementedError

    def loads_untrusted(self, blob: bytes) -> Any:
        """The value of bytes that others may have written: SerializationError where making it could run their code."""
        raise SerializationError(f"others could have written this data, which {self!r} is not asked to read then")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # compares by attributes that can be changed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


class AutoSerializer(Serializer):
    """Tagged JSON where it carries the value, else a pickle. The default."""

    type = "auto"

    def dumps(self, obj: Any) -> bytes:
        return pack(obj)[1]

    def loads(self, blob: bytes) -> Any:
        return unpack(self._form(blob), blob, allow_pickle=True, resolve=import_resolver)

    def loads_untrusted(self, blob: bytes) -> Any:
        return unpack(self._form(blob), blob, allow_pickle=False)

    def _form(self, blob: bytes) -> str:
        return "pickle" if blob[:1] == b"\x80" else "json"  # no JSON begins so, and every pickle of ours does


class JSONSerializer(AutoSerializer):
    """Tagged JSON only."""

    type = "json"

    def dumps(self, obj: Any) -> bytes:
        return pack(obj, allow_pickle=False)[1]

    def _form(self, blob: bytes) -> str:
        return "json"


class PickleSerializer(AutoSerializer):
    """Pickles only: for values that must come back with all that JSON loses, such as what is shared in them."""

    type = "pickle"

    def dumps(self, obj: Any) -> bytes:
        return _pickled(obj, NotEncodable("it was to be pickled"))

    def _form(self, blob: bytes) -> str:
        return "pickle"


_COMPRESSIONS = ("zlib", "bz2", "lzma")


class CompressedSerializer(Serializer):
    """What another serializer writes, compressed by a module of the standard library (zlib, bz2 or lzma)."""

    type = "compressed"

    def __init__(self, serializer: Serializer | str = "auto", compressionlib: str = "zlib") -> None:
        if compressionlib not in _COMPRESSIONS:
            raise ValueError(f"compressionlib is one of {', '.join(_COMPRESSIONS)}, not {compressionlib!r}")
        self.serializer = get_serializer(serializer)
        self.compressionlib = compressionlib

    def _library(self) -> Any:
        import importlib  # only compressed results need one of these

        return importlib.import_module(self.compressionlib)

    def _expand(self, blob: bytes) -> bytes:
        try:
            data: bytes = self._library().decompress(blob)
        except Exception as error:  # each library has errors of its own
            raise SerializationError(f"stored data is not compressed by {self.compressionlib}: {error}") from error
        return data

    def dumps(self, obj: Any) -> bytes:
        data: bytes = self._library().compress(self.serializer.dumps(obj))
        return data

    def loads(self, blob: bytes) -> Any:
        return self.serializer.loads(self._expand(blob))

    def loads_untrusted(self, blob: bytes) -> Any:
        return self.serializer.loads_untrusted(self._expand(blob))


class CompressedJSONSerializer(CompressedSerializer):
    """Tagged JSON, compressed."""

    type = "compressed/json"

    def __init__(self, serializer: Serializer | str = "json", compressionlib: str = "zlib") -> None:
        super().__init__(serializer, compressionlib)


class CompressedPickleSerializer(CompressedSerializer):
    """Pickles, compressed."""

    type = "compressed/pickle"

    def __init__(self, serializer: Serializer | str = "pickle", compressionlib: str = "zlib") -> None:
        super().__init__(serializer, compressionlib)


class UnknownSerializer(Serializer):
    """Stands for a serializer that stored data names and that is not known here. It only says so."""

    def __init__(self, type: str) -> None:
        self.type = type

    def _refuse(self) -> SerializationError:
        known = ", ".join(Serializer._by_name)
        return SerializationError(f"the serializer {self.type!r} is not known; known are {known}")

    def dumps(self, obj: Any) -> bytes:
        raise self._refuse()

    def loads(self, blob: bytes) -> Any:
        raise self._refuse()


def get_serializer(given: Serializer | str) -> Serializer:
    """The serializer of that name; a serializer itself as it is. ValueError for an unknown name."""
    if not isinstance(given, str):
        return given
    if given not in Serializer._by_name:
        raise ValueError(f"there is no serializer {given!r}; known are {', '.join(Serializer._by_name)}")
    serializer: Serializer = Serializer._by_name[given]()
    return serializer


def serializer_to_json(serializer: Serializer) -> dict[str, Any]:
    """What is recorded of a serializer: its name, and the settings of those of ours that have some."""
    given: dict[str, Any] = {"type": serializer.type}
    if isinstance(serializer, CompressedSerializer):
        given.update(compressionlib=serializer.compressionlib, serializer=serializer_to_json(serializer.serializer))
    return given


def serializer_from_json(given: Any) -> Serializer:
    """The serializer that was recorded; an :class:`UnknownSerializer` when it is not known here."""
    name = given.get("type") if isinstance(given, dict) else given
    kind = Serializer._by_name.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(given, dict):
        return UnknownSerializer(str(name)[:100])
    if not issubclass(kind, CompressedSerializer):
        serializer: Serializer = kind()
        return serializer
    if given.get("compressionlib") not in _COMPRESSIONS:
        return UnknownSerializer(f"{name} with {given.get('compressionlib')!r}"[:100])
    compressed: Serializer = kind(serializer_from_json(given.get("serializer")), given["compressionlib"])
    return compressed


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
        if text.count("[") + text.count("{") <= MAX_DEPTH or _depth(text) <= MAX_DEPTH:
            return blake2b(text.encode("ascii"), digest_size=16).digest()
    except Exception:  # not plain, or whatever the value raises when it is read: the other way tells
        pass
    try:
        text = _dumps(["walked", _Walk(replace).shown(value)])
    except Exception:  # whatever the value raises when it is read: its class is all that is left
        text = _dumps(["unreadable", type(value).__qualname__])
    return blake2b(text.encode("ascii"), digest_size=16).digest()


_last_encoder: tuple[Replace | None, Callable[[Any], str]] | None = None


def _encoder(replace: Replace | None) -> Callable[[Any], str]:
    """The encoder whose hook asks `replace`. The latest is kept: one tuple, so that threads see both or neither."""
    global _last_encoder
    last = _last_encoder
    if last is not None and last[0] is replace:
        return last[1]

    def hook(value: Any) -> Any:
        given = replace(value) if replace is not None else None
        if given is not None:
            return given
        if isinstance(value, (set, frozenset)):
            return {"$": "set", "v": sorted(map(encode, value))}
        leaf = _leaf(value)
        if leaf is None:
            raise TypeError  # it has members: the long way
        return {"$": leaf[0], "v": leaf[1:]}

    encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=hook).encode
    _last_encoder = (replace, encode)
    return encode


_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_BRACKET = re.compile(r"[\[\]{}]")
_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}


def _depth(text: str) -> int:
    """How deep the brackets of a JSON text stand in each other."""
    brackets = _BRACKET.findall(_STRING.sub("", text))
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


class _Walk:
    """The long way to a fingerprint: one pass over everything that `shown` is asked for."""

    def __init__(self, replace: Replace | None) -> None:
        self.replace = replace
        self.above: list[int] = []  # the ids of the containers around the current value
        self.memo: dict[int, tuple[Any, str]] = {}  # by id, with the object, so that no id is used again
        self.sets = 0  # how many of those above are sets

    def shown(self, value: Any) -> Any:
        """A scalar as it is; for a container, a list with its hash."""
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, int):
            number = int(value)
            return number if number.bit_length() <= MAX_BITS else ["int", hex(number)]
        if isinstance(value, float):
            return ["float", float.__repr__(value)]
        place = id(value)
        if place in self.above:
            return ["cycle", self.above[::-1].index(place)]
        if place in self.memo:
            return ["hash", self.memo[place][1]]
        if len(self.above) >= MAX_DEPTH:
            return ["deep", type(value).__qualname__]
        self.above.append(place)
        text = _dumps(self.parts(value))
        self.above.pop()
        digest = blake2b(text.encode("ascii"), digest_size=16).hexdigest()
        self.memo[place] = (value, digest)
        return ["hash", digest]

    def parts(self, value: Any) -> list[Any]:
        if isinstance(value, (list, tuple)):
            return ["list", *map(self.shown, value)]
        if isinstance(value, dict):
            keys = sorted(((_dumps(self.shown(key)), key) for key in value), key=itemgetter(0))
            return ["dict", *([text, self.shown(value[key])] for text, key in keys)]
        given = self.replace(value) if self.replace is not None else None
        if given is not None:
            return ["given", self.shown(given)]
        if isinstance(value, (set, frozenset)):
            return ["set", *self.members_of_set(value)]
        leaf = _leaf(value)
        if leaf is not None:
            return leaf
        name = type(value).__qualname__
        return [name, *map(self.shown, _members(value))] if self.sets < 2 else [name]

    def members_of_set(self, value: Any) -> list[str]:
        """The sorted texts of the members. They come in an order that differs between processes, so none may see
        what the memo has from another; that would be endless work where sets of objects refer to each other,
        hence an object in a set in a set is not looked into."""
        memo, texts = self.memo, []
        self.sets += 1
        for member in value:
            self.memo = {}
            texts.append(_dumps(self.shown(member)))
        self.sets -= 1
        self.memo = memo
        return sorted(texts)


def _leaf(value: Any) -> list[Any] | None:
    """Plain JSON for an object that holds no others; None when its members count."""
    kind = type(value)
    name = kind.__qualname__
    if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
        return ["code", f"{module_name(value.__module__)}:{value.__qualname__}"]
    if isinstance(value, ModuleType):
        return ["module", module_name(value.__name__)]
    if isinstance(value, (date, time)):
        return [name, value.isoformat()]
    if isinstance(value, Enum):  # flags that have no name together get one on some Pythons
        return [name, value._name_ if value._name_ in kind.__members__ else to_json(value._value_)]
    if hasattr(kind, "__fspath__"):  # paths cache their hash, which differs between processes
        return ["path", str(os.fspath(value))]
    if (kind.__module__, name) in _SIMPLE:
        return [name, to_json(value)["v"]]
    if isinstance(value, (MethodType, partial, deque, BaseException)) or _attributes(value):
        return None
    return [name, *_buffer(value)]


_SIMPLE = {
    ("builtins", "bytes"),
    ("builtins", "complex"),
    ("builtins", "range"),
    ("datetime", "timedelta"),
    ("decimal", "Decimal"),
    ("uuid", "UUID"),
}


def _members(value: Any) -> list[Any]:
    """What an object that is no leaf consists of."""
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, deque):
        return list(value)
    first = value.args if isinstance(value, BaseException) else _buffer(value)
    return [first, _attributes(value)]


def _attributes(value: Any) -> dict[str, Any]:
    """What an object shows of itself."""
    shown = dict(getattr(value, "__dict__", None) or {})
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = f"_{base.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                shown[name] = getattr(value, name)
    return shown


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

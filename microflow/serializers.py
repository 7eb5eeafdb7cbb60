# SPDX-License-Identifier: Apache-2.0
"""Values as JSON and as bytes.

:func:`to_json` and :func:`from_json` (from ``_tagged_json``) carry the common types. :func:`pack` gives
bytes, and falls back to pickle for values that this user's own code made. :func:`describe_exception` and
:func:`restore_exception` never fail. A :class:`Serializer` does the like under a name.
"""

from __future__ import annotations

import json
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

from ._modules import module_name
from ._stored_exceptions import OriginalTraceback, RestoredError, describe, restore, same_text, text_of
from ._tagged_json import (
    NotEncodable,
    default_resolver,
    from_json,
    import_resolver,
    to_json,
)
from .exceptions import SerializationError

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


def in_main_program(module: str, qualname: str) -> Any:
    """Stands in pickles for the classes and functions of the program that wrote them. A pickle would name them
    ``__main__``, which is another program where it is opened."""
    return import_resolver(module, qualname)


@lru_cache(maxsize=1)
def _pickle_classes() -> tuple[Any, Any]:
    import pickle  # costs 4 ms and is rarely needed

    class Pickler(pickle.Pickler):
        saw_exception = False

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, BaseException):
                self.saw_exception = True
            elif isinstance(value, (type, FunctionType)) and value.__module__ == "__main__":
                name = module_name("__main__")
                if name != "__main__":
                    return in_main_program, (name, value.__qualname__)
            return NotImplemented

    class Unpickler(pickle.Unpickler):
        resolve: Resolver | None = None

        def find_class(self, module: str, name: str) -> Any:
            resolve = self.resolve or super().find_class
            return resolve if (module, name) == (__name__, in_main_program.__name__) else resolve(module, name)

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


_MOST_MEMBERS = 100_000_000  # what is shared is written out each time: an end must be


class JSONSerializer(AutoSerializer):
    """Tagged JSON only."""

    type = "json"

    def dumps(self, obj: Any) -> bytes:
        try:
            return _dumps(to_json(obj, most_members=_MOST_MEMBERS)).encode("ascii")
        except RecursionError as error:
            raise NotEncodable("the stack is full") from error

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

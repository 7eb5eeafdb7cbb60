# SPDX-License-Identifier: Apache-2.0
"""Tagged JSON: more types than JSON has, as plain JSON.

:func:`to_json` and :func:`from_json` carry more than JSON has, by *tagged* objects: ``{"$": "tuple", "v":
[1, 2]}``. A dict that has a key ``"$"`` itself, or keys that are not strings, is tagged too, so that plain
JSON stays plain and nothing is ambiguous. A type is either listed here and comes back exactly as it was,
or it is refused with the path to it (:class:`NotEncodable`); a subclass of a listed type counts as not
listed. What JSON loses: that one object stood in two places.

========================= ==================================================================================
tag                       ``v``
========================= ==================================================================================
tuple set frozenset       the members (sets sorted by their text)
dict ordereddict          ``[[key, value], ...]``
defaultdict               ``[name of the factory or null, [[key, value], ...]]``; only for built-in factories
deque                     ``[members, maxlen]``
range complex timedelta   ``[start, stop, step]``, ``[real, imag]``, ``[days, seconds, microseconds]``
bytes bytearray           base64
str                       base64 of UTF-8 with surrogates: for text that is no valid Unicode
int float                 hexadecimal text, for more than 2,048 bits; ``"nan"``, ``"inf"``, ``"-inf"``
datetime time             ISO 8601, or ``[ISO 8601, name of the time zone or null, fold]``
date uuid decimal         their text
path posixpath windowspath  the text of a path of this system, of a pure POSIX path, of a pure Windows path
enum                      ``[class, name]``, or ``[class, null, value]`` for flags that have no name together
namedtuple dataclass      ``[class, members]``, ``[class, {field: value}]``
exception                 an object, see ``_stored_exceptions.describe``
state                     ``{type, name, message, at, details, data}``; of ``_kept``, which adds this tag
future                    the id of a deferred run; of ``futures``
allow_failure opaque      the annotated value; also ``quote`` and ``unmapped``; of ``client.deferred``
========================= ==================================================================================

A class is named ``module:qualname`` and found again by a *resolver*. The default one looks only at what is
imported already; :func:`import_resolver` imports, which runs code: the caller uses it only when nobody else
can have written the data. No class is called to rebuild a value: members are set, ``__init__`` and
``__post_init__`` do not run. So data cannot make code run, but for ``_missing_`` of an Enum.
"""

from __future__ import annotations

import enum
import json
import math
import sys
from binascii import a2b_base64, b2a_base64
from collections import OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ._modules import class_name, loaded_module
from ._stored_exceptions import describe, restore
from .exceptions import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Resolver = Callable[[str, str], Any]

MAX_DEPTH = 100
"""How deep containers may stand in each other. What contains itself is deeper than that."""

MAX_MEMBERS = 500_000  # more do not fit into the 1 MiB that is kept; parts that stand in a value often add up
MAX_BITS = 2048  # of an int as decimal text: Python refuses to convert more than 4,300 digits, or 640 if told so


class NotEncodable(SerializationError):
    """A value that JSON (or, from :func:`pack`, pickle too) cannot carry. ``path`` says where it stands."""

    def __init__(self, reason: str, root: str = "result") -> None:
        super().__init__(reason)
        self.reason = reason
        self.root = root
        self._pieces: list[str] = []

    def under(self, piece: str) -> None:
        """Note one step outwards: called by each container that the error passes."""
        self._pieces.append(piece)

    @property
    def path(self) -> str:
        """The place inside the value, such as ``result["a"][3]``."""
        return self.root + "".join(reversed(self._pieces))

    def __str__(self) -> str:
        return f"{self.path} cannot be written as JSON: {self.reason}"


# ------------------------------------------------------------------------------------------ classes by name


def default_resolver(module: str, qualname: str) -> Any:
    """What `qualname` names in a module that is imported already; SerializationError when there is none."""
    found = loaded_module(module)
    if found is None:
        raise SerializationError(f"{module}:{qualname} is not known here: module {module} is not imported")
    return _attribute(found, module, qualname)


def import_resolver(module: str, qualname: str) -> Any:
    """The same, but the module is imported if need be. That runs its code: only for trusted data."""
    import importlib  # costs 0.7 ms and is rarely needed

    try:
        found = loaded_module(module) or importlib.import_module(module)
    except Exception as error:  # a module may raise anything while it is imported
        raise SerializationError(f"{module}:{qualname} cannot be imported: {type(error).__name__}: {error}") from error
    return _attribute(found, module, qualname)


def _attribute(found: Any, module: str, qualname: str) -> Any:
    for name in qualname.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise SerializationError(f"{module}:{qualname} is not known here: there is no {name!r} in it") from None
    return found


def _class_path(kind: type) -> str:
    """The name by which the class is found again; NotEncodable when it would not be."""
    if "<locals>" in kind.__qualname__:
        raise NotEncodable(f"the class {class_name(kind)} is defined inside a function and cannot be found again")
    try:
        found = default_resolver(kind.__module__, kind.__qualname__)
    except SerializationError as problem:
        raise NotEncodable(str(problem)) from None
    if found is not kind:
        raise NotEncodable(f"{class_name(kind)} names something else than the class of this value")
    return class_name(kind)


# -------------------------------------------------------------------------------------------------- writing


class _Writer:
    """One call of :func:`to_json`. An error leaves it useless."""

    __slots__ = ("depth", "left", "most_members")

    def __init__(self, most_members: int) -> None:
        self.depth = 0
        self.left = self.most_members = most_members

    def write(self, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            return value if value.isascii() else _write_text(value)
        if kind is int:
            return value if value.bit_length() <= MAX_BITS else _tag("int", hex(value))
        if value is None or kind is bool:
            return value
        if kind is float:
            return value if math.isfinite(value) else _tag("float", repr(value))
        write = _WRITERS.get(kind) or _writer_of(kind)
        if write is None:
            raise NotEncodable(f"there is no JSON form for a {class_name(kind)}")
        if self.depth >= MAX_DEPTH:
            raise NotEncodable(f"it is nested deeper than {MAX_DEPTH} levels, or contains itself")
        self.depth += 1
        data = write(self, value)
        self.depth -= 1
        return data

    def members(self, values: Iterable[Any]) -> list[Any]:
        written: list[Any] = []
        try:
            for value in values:
                written.append(self.write(value))  # its length tells where an error is
        except NotEncodable as error:
            error.under(f"[{len(written)}]")
            raise
        self.count(len(written))
        return written

    def count(self, members: int) -> None:
        self.left -= members
        if self.left < 0:
            raise NotEncodable(f"it has more than {self.most_members:,} members when it is written out")

    def named(self, values: dict[str, Any], piece: str) -> dict[str, Any]:
        """A dict whose keys are plain; `piece` makes a key a step of the path."""
        written, key = {}, ""
        try:
            for key, value in values.items():
                written[key] = self.write(value)
        except NotEncodable as error:
            error.under(piece.format(key))
            raise
        self.count(len(written))
        return written

    def pairs(self, values: dict[Any, Any]) -> list[list[Any]]:
        written: list[list[Any]] = []
        key: Any = None
        try:
            for key, value in values.items():
                written.append([self.write(key), self.write(value)])
        except NotEncodable as error:
            error.under(f"[{key!r}]" if isinstance(key, (str, int)) else f"[<{type(key).__name__}>]")
            raise
        self.count(len(written))
        return written


def _tag(tag: str, body: Any) -> dict[str, Any]:
    return {"$": tag, "v": body}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: two of them would come back from JSON as one character
        return False
    return True


def _write_text(text: str) -> Any:
    if _is_unicode(text):
        return text
    return _tag("str", b2a_base64(text.encode("utf-8", "surrogatepass"), newline=False).decode("ascii"))


def _write_dict(writer: _Writer, value: dict[Any, Any]) -> Any:
    for key in value:
        if type(key) is not str or key == "$" or not (key.isascii() or _is_unicode(key)):
            return _tag("dict", writer.pairs(value))
    return writer.named(value, "[{!r}]")


def _write_set(writer: _Writer, value: Iterable[Any]) -> Any:
    try:
        written = writer.members(value)
    except NotEncodable as error:
        error._pieces[-1] = "{...}"  # the members of a set have no place
        raise
    return _tag(type(value).__name__, sorted(written, key=_dumps))


_dumps = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


def _write_bytes(_: _Writer, value: bytes | bytearray) -> Any:
    return _tag(type(value).__name__, b2a_base64(value, newline=False).decode("ascii"))


def _write_moment(_: _Writer, value: datetime | time) -> Any:
    zone, key = value.tzinfo, None
    if zone is not None and type(zone) is not timezone:
        key = getattr(zone, "key", None)
        if type(zone).__name__ != "ZoneInfo" or key is None:
            raise NotEncodable(f"there is no JSON form for the time zone {zone!r} (a {class_name(type(zone))})")
    text = value.isoformat()
    return _tag(type(value).__name__, text if key is None and not value.fold else [text, key, value.fold])


_FACTORIES = (None, list, dict, set, tuple, str, int, float, bool)


def _write_defaultdict(writer: _Writer, value: defaultdict[Any, Any]) -> Any:
    factory = value.default_factory
    if factory not in _FACTORIES:
        raise NotEncodable(f"the factory {factory!r} of a defaultdict is none of the built-in types")
    return _tag("defaultdict", [getattr(factory, "__name__", None), writer.pairs(value)])


def _write_enum(writer: _Writer, value: enum.Enum) -> Any:
    kind = type(value)
    path = _class_path(kind)
    if value._name_ in kind.__members__:
        return _tag("enum", [path, value._name_])
    return _tag("enum", [path, None, writer.write(value._value_)])


def _write_namedtuple(writer: _Writer, value: tuple[Any, ...]) -> Any:
    if getattr(value, "__dict__", None):
        raise NotEncodable(f"this {class_name(type(value))} has attributes beside its fields")
    return _tag("namedtuple", [_class_path(type(value)), writer.members(value)])


def _write_dataclass(writer: _Writer, value: Any) -> Any:
    import dataclasses  # loaded already: here is an instance of one

    kind = type(value)
    names = [field.name for field in dataclasses.fields(value)]
    extra = sorted(getattr(value, "__dict__", {}).keys() - set(names))
    if extra:
        raise NotEncodable(f"this {class_name(kind)} has attributes beside its fields: {', '.join(extra)}")
    try:
        fields = {name: getattr(value, name) for name in names}
    except AttributeError as error:
        raise NotEncodable(f"a field of this {class_name(kind)} is not set: {error}") from None
    return _tag("dataclass", [_class_path(kind), writer.named(fields, ".{}")])


def _write_exception(writer: _Writer, value: BaseException) -> Any:
    def write(part: Any, step: str) -> Any:
        try:
            return writer.write(part)
        except NotEncodable as error:
            error.under(step)
            raise

    _class_path(type(value))
    return _tag("exception", describe(value, write, strict=True))


_WRITERS: dict[type, Callable[[_Writer, Any], Any]] = {
    dict: _write_dict,
    list: _Writer.members,
    tuple: lambda writer, value: _tag("tuple", writer.members(value)),
    set: _write_set,
    frozenset: _write_set,
    OrderedDict: lambda writer, value: _tag("ordereddict", writer.pairs(value)),
    defaultdict: _write_defaultdict,
    deque: lambda writer, value: _tag("deque", [writer.members(value), value.maxlen]),
    range: lambda writer, value: _tag("range", writer.members((value.start, value.stop, value.step))),
    complex: lambda writer, value: _tag("complex", writer.members((value.real, value.imag))),
    bytes: _write_bytes,
    bytearray: _write_bytes,
    datetime: _write_moment,
    time: _write_moment,
    date: lambda _, value: _tag("date", value.isoformat()),
    timedelta: lambda _, value: _tag("timedelta", [value.days, value.seconds, value.microseconds]),
    UUID: lambda _, value: _tag("uuid", str(value)),
}

# Types of modules that are not worth loading for the chance that a value comes from them.
_LATE = {
    ("decimal", "Decimal"): "decimal",
    ("pathlib", "PosixPath"): "path",
    ("pathlib", "WindowsPath"): "path",
    ("pathlib", "PurePosixPath"): "posixpath",
    ("pathlib", "PureWindowsPath"): "windowspath",
}
_BUILTIN = (dict, list, tuple, set, frozenset, deque, str, bytes, bytearray, int, float, complex)


def _writer_of(kind: type) -> Callable[[_Writer, Any], Any] | None:
    """How to write the values of a type that is known by its looks, or None."""
    if issubclass(kind, enum.Enum):
        return _write_enum
    if issubclass(kind, BaseException):
        return _write_exception
    if issubclass(kind, tuple) and hasattr(kind, "_fields") and hasattr(kind, "_make"):
        return _write_namedtuple
    if hasattr(kind, "__dataclass_fields__") and not issubclass(kind, _BUILTIN):
        return _write_dataclass
    module = kind.__module__.partition(".")[0]  # pathlib was a package for a while
    tag = _LATE.get((module, kind.__qualname__))
    if tag is None or getattr(sys.modules.get(module), kind.__name__, None) is not kind:
        return None
    return lambda _, value: _tag(tag, str(value))


def to_json(value: Any, *, root: str = "result", most_members: int = MAX_MEMBERS) -> Any:
    """`value` as plain JSON types, tagged where JSON has no such type. `root` names the value in errors.

    NotEncodable, with the path to the culprit, for a type that is not listed at the head of this module, for
    more than 100 levels, and for what contains itself.
    """
    try:
        return _Writer(most_members).write(value)
    except NotEncodable as error:
        error.root = root
        raise
    except RuntimeError as error:  # also a RecursionError, on a stack that was nearly full
        raise NotEncodable(f"it changed while it was read, or the stack is full ({error})", root) from error


# -------------------------------------------------------------------------------------------------- reading


class _Reader:
    """One call of :func:`from_json`."""

    __slots__ = ("resolve",)

    def __init__(self, resolve: Resolver) -> None:
        self.resolve = resolve

    def read(self, data: Any) -> Any:
        if type(data) is list:
            return [self.read(member) for member in data]
        if type(data) is not dict:
            return data
        if "$" not in data:
            return {key: self.read(member) for key, member in data.items()}
        read = _READERS.get(data["$"])
        if read is None:
            raise SerializationError(f"stored data has the unknown tag {data['$']!r}; a newer microflow may know it")
        return read(self, data["v"])

    def pairs(self, data: list[Any]) -> list[tuple[Any, Any]]:
        return [(self.read(key), self.read(value)) for key, value in data]

    def find_class(self, path: str, base: type) -> Any:
        module, _, qualname = path.partition(":")
        kind = self.resolve(module, qualname)
        if not isinstance(kind, type) or not issubclass(kind, base):
            raise SerializationError(f"stored data names {path} as a class, but it is {kind!r} here")
        return kind


def _read_moment(kind: type[datetime | time], data: str | list[Any]) -> Any:
    if isinstance(data, str):
        return kind.fromisoformat(data)
    text, key, fold = data
    value = kind.fromisoformat(text).replace(fold=fold)
    if key is None:
        return value
    import zoneinfo  # costs 3 ms and is rarely needed

    try:
        there = value.replace(tzinfo=zoneinfo.ZoneInfo(key))
    except (KeyError, ValueError, OSError):  # this machine does not know the zone: the offset is what counts
        return value
    return there if there.utcoffset() == value.utcoffset() else value  # the zone has other rules here


def _read_path(tag: str, text: str) -> Any:
    import pathlib  # costs 5 ms and is rarely needed

    kinds = {"path": pathlib.Path, "posixpath": pathlib.PurePosixPath, "windowspath": pathlib.PureWindowsPath}
    return kinds[tag](text)


def _read_decimal(text: str) -> Any:
    import decimal  # costs 4 ms and is rarely needed

    return decimal.Decimal(text)


def _read_enum(reader: _Reader, data: list[Any]) -> Any:
    kind = reader.find_class(data[0], enum.Enum)
    if data[1] is None:
        return kind(reader.read(data[2]))
    if data[1] not in kind.__members__:
        raise SerializationError(f"the Enum {data[0]} has no member {data[1]!r} any more")
    return kind.__members__[data[1]]


def _read_namedtuple(reader: _Reader, data: list[Any]) -> Any:
    kind = reader.find_class(data[0], tuple)
    members = reader.read(data[1])
    if len(members) != len(kind._fields):
        raise SerializationError(f"{data[0]} has {len(kind._fields)} fields now; {len(members)} were stored")
    return tuple.__new__(kind, members)


def _read_dataclass(reader: _Reader, data: list[Any]) -> Any:
    import dataclasses  # only for values that are made of them

    kind = reader.find_class(data[0], object)
    values = {name: reader.read(member) for name, member in data[1].items()}
    for field in dataclasses.fields(kind):
        if field.name in values:
            continue
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        else:
            raise SerializationError(f"{data[0]} has the field {field.name!r} now, which was not stored")
    new = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(new, name, value)  # frozen ones too
    return new


_READERS: dict[Any, Callable[[_Reader, Any], Any]] = {
    "tuple": lambda reader, data: tuple(reader.read(data)),
    "set": lambda reader, data: set(reader.read(data)),
    "frozenset": lambda reader, data: frozenset(reader.read(data)),
    "dict": lambda reader, data: dict(reader.pairs(data)),
    "ordereddict": lambda reader, data: OrderedDict(reader.pairs(data)),
    "defaultdict": lambda reader, data: defaultdict(
        next(kind for kind in _FACTORIES if getattr(kind, "__name__", None) == data[0]), reader.pairs(data[1])
    ),
    "deque": lambda reader, data: deque(reader.read(data[0]), data[1]),
    "range": lambda reader, data: range(*reader.read(data)),
    "complex": lambda reader, data: complex(*reader.read(data)),
    "bytes": lambda _, data: a2b_base64(data),
    "bytearray": lambda _, data: bytearray(a2b_base64(data)),
    "str": lambda _, data: a2b_base64(data).decode("utf-8", "surrogatepass"),
    "int": lambda _, data: int(data, 16),
    "float": lambda _, data: float(data),
    "datetime": lambda _, data: _read_moment(datetime, data),
    "time": lambda _, data: _read_moment(time, data),
    "date": lambda _, data: date.fromisoformat(data),
    "timedelta": lambda _, data: timedelta(*data),
    "uuid": lambda _, data: UUID(data),
    "decimal": lambda _, data: _read_decimal(data),
    "path": lambda _, data: _read_path("path", data),
    "posixpath": lambda _, data: _read_path("posixpath", data),
    "windowspath": lambda _, data: _read_path("windowspath", data),
    "enum": _read_enum,
    "namedtuple": _read_namedtuple,
    "dataclass": _read_dataclass,
    "exception": lambda reader, data: restore(data, reader.resolve, reader.read),
}


def add_tag(tag: str, kind: type, parts: Callable[[Any], Any], rebuild: Callable[[Any], Any]) -> None:
    """Carry a class of our own as well, under `tag`: `parts` gives what is written of a value, `rebuild` makes the
    value of that again. For modules on higher floors, when they are imported."""
    _WRITERS[kind] = lambda writer, value: _tag(tag, writer.write(parts(value)))
    _READERS[tag] = lambda reader, data: rebuild(reader.read(data))


def from_json(data: Any, resolve: Resolver | None = None) -> Any:
    """The value that :func:`to_json` wrote. Classes are found by ``resolve(module, qualname)``.

    SerializationError when data is damaged or names what is not there; an exception whose class is not
    there comes back as a ``RestoredError``.
    """
    try:
        return _Reader(resolve or default_resolver).read(data)
    except SerializationError:
        raise
    except Exception as error:  # data from outside can be wrong in any way
        raise SerializationError(f"stored data cannot be read: {type(error).__name__}: {error}") from error

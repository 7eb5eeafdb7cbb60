# SPDX-License-Identifier: Apache-2.0
"""Values as hashes: the identity of a call's inputs, and keys for caches.

:func:`fingerprint` is asked for every call, and answers whatever the value is. :func:`stable_hash` is asked when the
answer decides that a call is *not* made: it rather refuses than to give two values one hash.

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

How a stable hash is made
=========================

Goal: two values that differ never have the same hash because of how it is made; equal values of the types that
tagged JSON carries have the same one in every process and on every Python; a million entries of plain data take
less than a second.

What does not work: JSON alone (it takes a tuple for a list, and 1 for "1" as a key); pickle (what is shared shows,
the order of sets shows, and it differs between versions); a fingerprint (it makes do with the name of a class).

The rule: the type counts everywhere. ``1``, ``1.0`` and ``True`` differ, and so do a list and its tuple, the keys
``1`` and ``"1"``, a subclass and its base, text with half characters and the whole one. The order counts but for
dicts and sets. What is shared does not count. Data of plain JSON types is written by the encoder in C, with what
JSON does not say beside it: which levels are tuples and which have keys that are ints (:func:`_shape`). Everything
else takes the long way (:class:`_Exact`), in which plain parts take the short one. An object counts by its class and
by what it tells the pickle protocol of itself (``__reduce_ex__``), memory buffers by their bytes, a function by its
name where its module has it under that name, else by its code, defaults and closure.

It refuses what tells nothing: locks, sockets, generators, a bare ``object()``, futures; what contains itself, and what
is nested deeper than 100 levels. Known holes: a class counts by its name alone; the code of a function that counts
by it is that of one Python version; what an object leaves out of its pickle does not count; ints of more than
4,300 digits may have two hashes.
"""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict, deque
from datetime import date, datetime, time, timedelta
from enum import Enum
from functools import partial
from itertools import accumulate, chain
from operator import itemgetter
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ._digests import blake2b
from ._modules import class_name, module_name
from ._strict_json import make_encoder
from ._tagged_json import MAX_BITS, MAX_DEPTH, NotEncodable, default_resolver, to_json
from .exceptions import HashError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Replace = Callable[[Any], Any]

_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def fingerprint(value: Any, replace: Replace | None = None) -> bytes:
    """16 bytes that identify `value` by its structure, equal in every process. Never raises.

    ``replace(object)`` is asked first about each object that JSON has no form for; what it returns (plain
    JSON) stands for the object, None means that it has nothing to say. Use one function for all calls: the
    encoder that is made for it is kept. What counts as equal stands at the head of this module.
    """
    try:
        is_flat = type(value) is dict and _LEAVES.issuperset(map(type, value.values()))  # as the inputs of most calls
        if is_flat or _is_short(value):
            text = _encoder(replace)(value)
            # each level opens a bracket: a text with few of them is not deep
            if is_flat or text.count("[") + text.count("{") <= MAX_DEPTH or _depth(text) <= MAX_DEPTH:
                return blake2b(text.encode("ascii"), digest_size=16).digest()
    except Exception:  # not plain, or whatever the value raises when it is read: the other way tells
        pass
    try:
        text = _dumps(["walked", _Walk(replace).shown(value)])
    except Exception:  # whatever the value raises when it is read: its class is all that is left
        text = _dumps(["unreadable", type(value).__qualname__])
    return blake2b(text.encode("ascii"), digest_size=16).digest()


def _is_short(value: Any) -> bool:
    """Whether a value has at most :data:`_MOST_PLAIN` members as JSON, where what is shared is written each time: a
    list that holds one list twice, which holds one list twice, and so on, has few members and a text without end.
    Costs 40 ns a member, because the loops are in C."""
    members, kinds, left = [value], {type(value)}, _MOST_PLAIN
    for _ in range(MAX_DEPTH + 1):
        if kinds <= _LEAVES:
            return True
        containers = [member for member in members if isinstance(member, (list, tuple, dict))]
        if len(containers) > _MANY and len(set(map(id, containers))) * 2 < len(containers):
            return _members_written(value, {}) <= _MOST_PLAIN
        members = list(chain.from_iterable([each.values() if isinstance(each, dict) else each for each in containers]))
        left -= len(members)
        if left < 0:
            return False
        kinds = set(map(type, members))
    return False


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
            if not {*map(type, value)} <= _LEAVES:
                raise TypeError  # texts in texts grow with each level: the long way
            return {"$": "set", "v": sorted(map(encode, value))}
        leaf = _leaf(value)
        if leaf is None:
            raise TypeError  # it has members: the long way
        return {"$": leaf[0], "v": leaf[1:]}

    plain = json.JSONEncoder(sort_keys=True, check_circular=False, separators=(",", ":"), default=hook)
    encode = make_encoder(plain)
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
        self.inner: dict[int, dict[int, tuple[Any, str]]] = {}  # memos of what stands in a set in a set, by depth

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
            # in a set in a set nothing can contain itself, so that how deep it stands is all that matters
            self.memo = {} if self.sets == 1 else self.inner.setdefault(len(self.above), {})
            texts.append(_dumps(self.shown(member)))
        self.sets -= 1
        if self.sets == 1:
            self.inner = {}
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


# ------------------------------------------------------------------------------------------------ stable hashes


def hash_objects(*args: Any, raise_on_failure: bool = False, **kwargs: Any) -> str | None:
    """One stable hash of all arguments. None if one of them cannot be hashed, or HashError with `raise_on_failure`."""
    try:
        return stable_hash((args, kwargs), "objects")
    except HashError:
        if raise_on_failure:
            raise
        return None


def stable_hash(value: Any, root: str = "value") -> str:
    """32 hexadecimal digits for what `value` holds. What counts as equal stands at the head of this module.

    HashError, naming the place below `root` and the type found there, when something in it shows nothing of itself."""
    try:
        return str(_Exact().shown([value])[1])
    except NotEncodable as problem:
        problem.root, problem._pieces = root, problem._pieces[:-1]  # without the list around the value
        raise HashError(f"Unable to create hash: {problem.path} {problem.reason}") from problem
    except Exception as error:  # whatever the value raises when it is read, or a stack that is full
        reason = f"{root} cannot be read ({type(error).__name__}: {error})"
        raise HashError(f"Unable to create hash: {reason}") from error


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False).encode
_LEAVES = frozenset({str, int, float, bool, type(None)})
_NESTED = frozenset({dict, list, tuple})
_MANY = 1_000  # containers at one level: now it is worth looking whether they are the same ones again and again
_MOST_PLAIN = 2_000_000  # more members than these go the long way, which does not get lost in what is shared


def _shape(value: Any) -> str | None:
    """What the JSON text of a plain value does not say, for each level: lists or tuples, and the type of the keys.
    None for a value that is not plain. Costs about 50 ns a member, because the loops are in C."""
    members, kinds, left, shared = [value], {type(value)}, _MOST_PLAIN, False
    shape: list[str] = []
    while nested := kinds - _LEAVES:
        if not nested <= _NESTED or {list, tuple} <= nested or len(shape) >= MAX_DEPTH:
            return None
        containers = [member for member in members if type(member) in _NESTED] if kinds & _LEAVES else members
        level = list({id(container): container for container in containers}.values())
        shared = shared or len(level) < len(containers)
        dicts = [container for container in level if type(container) is dict] if dict in nested else []
        rows = [container for container in level if type(container) is not dict] if nested != {dict} else []
        keys = set(map(type, chain.from_iterable(dicts)))
        if len(keys) > 1 or not keys <= {str, int}:
            return None
        shape.append("".join(sorted(kind.__name__[0] for kind in (nested | keys) - {dict})))
        members = list(chain(chain.from_iterable(rows), chain.from_iterable(map(dict.values, dicts))))
        left -= len(members)
        if left < 0:
            return None
        kinds = set(map(type, members))
    # what is shared is written out each time, and must not decide which way is taken
    return None if shared and _members_written(value, {}) > _MOST_PLAIN else ",".join(shape)


def _members_written(value: Any, known: dict[int, int]) -> int:
    """How many members a plain value has when it is written out. RecursionError for one that contains itself."""
    if not isinstance(value, (list, tuple, dict)):
        return 0
    if id(value) not in known:
        members = value.values() if isinstance(value, dict) else value
        known[id(value)] = len(value) + sum(_members_written(member, known) for member in members)
    return known[id(value)]


class _Exact(_Walk):
    """The walk that refuses (NotEncodable, with the path to it) where the other one makes do with less."""

    def __init__(self) -> None:
        super().__init__(None)

    def shown(self, value: Any) -> Any:
        """A scalar as it is; for anything else, a list with its hash."""
        kind = type(value)
        if value is None or kind is str or kind is bool:
            return value
        if kind is int:
            return value if value.bit_length() <= MAX_BITS else ["int", hex(value)]
        if kind is float:
            return ["float", float.__repr__(value)]
        place = id(value)
        if place in self.memo:
            return ["hash", self.memo[place][1]]
        if place in self.above:
            raise NotEncodable(f"is a {class_name(kind)} that contains itself")
        if len(self.above) >= MAX_DEPTH:
            raise NotEncodable(f"is nested deeper than {MAX_DEPTH} levels")
        self.above.append(place)
        digest = blake2b(self.text(value).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        self.above.pop()
        self.memo[place] = (value, digest)
        return ["hash", digest]

    def text(self, value: Any) -> str:
        """The short way for a plain value, else the long one. Which one depends on the value only."""
        if type(value) in _NESTED and (shape := _shape(value)) is not None:
            try:
                return f"plain {shape} {_encode(value)}"
            except ValueError:  # an int that Python refuses to write in decimal digits
                pass
        return f"walked {_encode(self.parts(value))}"

    def parts(self, value: Any) -> list[Any]:
        kind = type(value)
        if kind is list or kind is tuple:
            return [kind.__name__, *self.members(value)]
        if kind is dict:
            return ["dict", *self.pairs(value, "[{!r}]")]
        if isinstance(value, (set, frozenset)):
            members = sorted(map(_encode, self.members(value, "{{...}}")))
            return [kind.__name__ if kind in (set, frozenset) else class_name(kind), members, *self.attributes(value)]
        if kind in _WRITTEN or (kind.__module__.partition(".")[0], kind.__qualname__) in _WRITTEN_BY_NAME:
            return ["written", self.written(value)]
        if kind is bytes:
            return ["bytes", len(value), blake2b(value, digest_size=16).hexdigest()]
        if isinstance(value, type):
            return ["class", class_name(value)]
        if isinstance(value, Enum):
            if value._name_ in kind.__members__:
                return ["enum", class_name(kind), value._name_]
            return ["flags", class_name(kind), self.shown(value._value_)]  # some Pythons give them a name together
        if isinstance(value, ModuleType):
            return ["module", module_name(value.__name__)]
        if isinstance(value, BaseException):
            return ["exception", class_name(kind), *self.members(value.args, ".args[{}]"), *self.attributes(value)]
        if kind is FunctionType:
            return self.function(value)
        if kind is CodeType:
            names = [list(value.co_names), list(value.co_varnames), list(value.co_freevars)]
            return ["code", value.co_code.hex(), names, *self.members(value.co_consts)]
        buffer = _buffer(value)
        if buffer:
            return ["buffer", class_name(kind), buffer, *self.attributes(value)]
        return self.reduced(value)

    def members(self, values: Iterable[Any], step: str = "[{}]") -> list[Any]:
        shown: list[Any] = []
        try:
            for value in values:
                shown.append(self.shown(value))  # its length tells where an error is
        except NotEncodable as error:
            error.under(step.format(len(shown)))
            raise
        return shown

    def pairs(self, values: dict[Any, Any], step: str) -> list[Any]:
        """Keys and values, sorted by the text of the key; `step` makes a key a step of the path."""
        shown, key = [], None
        try:
            for key, value in values.items():
                shown.append([_encode(self.shown(key)), self.shown(value)])
        except NotEncodable as error:
            error.under(step.format(key) if isinstance(key, (str, int)) else f"[<{type(key).__name__}>]")
            raise
        return sorted(shown, key=itemgetter(0))

    def attributes(self, value: Any) -> list[Any]:
        found = _attributes(value)
        return ["attributes", *self.pairs(found, ".{}")] if found else []

    def written(self, value: Any) -> Any:
        try:
            return to_json(value)
        except NotEncodable:  # a time zone of an unknown kind
            return self.reduced(value)

    def function(self, value: FunctionType) -> list[Any]:
        """A function that a module has under its name counts by that name; any other by its code and what it holds."""
        try:
            if default_resolver(value.__module__, value.__qualname__) is value:
                return ["function", f"{module_name(value.__module__)}:{value.__qualname__}"]
        except SerializationError:
            pass
        held = {"defaults": value.__defaults__, "kwdefaults": value.__kwdefaults__}
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                held[f"closure {name}"] = (cell.cell_contents,)
            except ValueError:  # an empty cell
                pass
        return ["function", self.shown(value.__code__), *self.pairs(held, ".<{}>")]

    def reduced(self, value: Any) -> list[Any]:
        """What an object tells the copy and pickle protocols of itself. Those that have something to hide refuse."""
        kind = type(value)
        try:
            found = None if kind is object else value.__reduce_ex__(4)
        except Exception as error:  # runs the user's code, which may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise NotEncodable(f"is a {class_name(kind)}, which does not show what it holds ({reason})") from error
        if isinstance(found, str):
            return ["global", module_name(getattr(value, "__module__", None) or kind.__module__), found]
        if not isinstance(found, tuple):
            raise NotEncodable(f"is a {class_name(kind)}, which does not show what it holds")
        make, args, state, items, pairs = (*found, None, None, None)[:5]
        parts = ["reduced", class_name(kind), self.shown(make), self.members(args, "<{}>")]
        for attributes in state if type(state) is tuple and len(state) == 2 else (state,):
            named = type(attributes) is dict
            parts.append(self.pairs(attributes, ".{}") if named else ["state", self.shown(attributes)])
        if items is not None:
            parts.append(["items", *self.members(items)])
        if pairs is not None:
            listed = list(pairs)
            order = [self.shown(key) for key, _ in listed] if isinstance(value, OrderedDict) else None
            parts.append(["pairs", order, *self.pairs(dict(listed), "[{!r}]")])
        return parts


_WRITTEN = frozenset({bytearray, complex, range, timedelta, datetime, date, time, UUID})
_WRITTEN_BY_NAME = frozenset(
    {
        ("decimal", "Decimal"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib", "PureWindowsPath"),
        ("pathlib", "WindowsPath"),
    }
)

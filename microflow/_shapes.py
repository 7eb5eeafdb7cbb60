# SPDX-License-Identifier: Apache-2.0
"""What an annotation asks for, as an object: a *shape*. Those of classes with fields stand in ``_field_shapes``.

``shape.take(value)`` is the value as the annotation wants it, or a :class:`Refusal` with every problem and its place;
``shape.schema(book)`` says the same as JSON schema. ``shape.exact(value)`` is whether the value has the very type
already, by which a union finds its member. Annotations become shapes in ``coercion``.

Rules that hold for all shapes: an object of a class, a dataclass or a model is passed on as it is, and not looked
into; containers are always rebuilt; problems of all members are collected, up to :data:`MOST_PROBLEMS`. A shape may
hold itself (a tree's children are trees), so a schema names what has fields once, in the ``$defs`` of its
:class:`SchemaBook`. A *value* that holds itself ends in a RecursionError, which ``coercion`` turns into a problem.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, MappingView, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from ._scalars import Unfit, shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import Enum

    from ._scalars import Scalar

    Place = tuple[str | int, ...]
    Problem = tuple[Place, str]

MOST_PROBLEMS = 100


class Refusal(Exception):
    """A value does not have the shape: ``problems`` are its places, from the outside in, each with the reason."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


def refuse(reason: str, *place: str | int) -> Refusal:
    """A refusal for one reason."""
    return Refusal([(place, reason)])


class Gathering:
    """Takes the members of a container one by one and collects what is wrong with them."""

    __slots__ = ("problems",)

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def take(self, shape: Shape, value: Any, *place: str | int) -> Any:
        """The member as `shape` wants it; None, and its problems noted, when it does not fit."""
        try:
            return shape.take(value)
        except Refusal as refusal:
            self.problems += [((*place, *inner), reason) for inner, reason in refusal.problems]
            if len(self.problems) >= MOST_PROBLEMS:
                raise Refusal(self.problems[:MOST_PROBLEMS]) from None
            return None

    def add(self, reason: str, *place: str | int) -> None:
        """Note a problem that is no member's."""
        self.problems.append((place, reason))

    def check(self) -> None:
        """Refuse the whole if there was any problem."""
        if self.problems:
            raise Refusal(self.problems)


class SchemaBook:
    """The definitions that the schemas of one document share: name -> schema."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._names: dict[int, str] = {}

    def reference(self, shape: Shape, name: str) -> dict[str, Any]:
        """``$ref`` to what defines `shape`, written at the first time; two classes of one name get two names."""
        if id(shape) not in self._names:
            number, free = 1, name
            while free in self.definitions:
                number, free = number + 1, f"{name}-{number + 1}"
            self._names[id(shape)] = free
            self.definitions[free] = {}  # taken, also for what stands inside of it
            self.definitions[free] = shape.define(self)
        return {"$ref": f"#/$defs/{self._names[id(shape)]}"}

    def whole(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema with the definitions that it refers to."""
        return {**schema, "$defs": self.definitions} if self.definitions else schema


class Shape:
    """Anything at all: the shape of what is not annotated, of ``Any`` and of whatever is not understood."""

    def take(self, value: Any) -> Any:
        """The value as it is wanted; a Refusal when it cannot be."""
        return value

    def exact(self, value: Any) -> bool:
        """Whether the value has the type already, so that taking it changes nothing."""
        return False

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """The JSON schema."""
        return {}

    def define(self, book: SchemaBook) -> dict[str, Any]:
        """The schema that a reference in `book` leads to."""
        raise AssertionError("only a shape with a name is referred to")

    @property
    def name(self) -> str:
        """What it is called among the members of a union."""
        return "any"


ANY = Shape()


class ScalarShape(Shape):
    """A number, a text, a moment …: a row of the table in ``_scalars``."""

    def __init__(self, kind: type, scalar: Scalar) -> None:
        self.kind = kind
        self.scalar = scalar

    def take(self, value: Any) -> Any:
        """Convert."""
        try:
            return self.scalar.convert(value)
        except Unfit as problem:
            raise refuse(str(problem)) from None

    def exact(self, value: Any) -> bool:
        """Paths have a class of their own on each system."""
        return type(value) is self.kind or (self.kind.__module__[:7] == "pathlib" and isinstance(value, self.kind))

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """From the table."""
        return dict(self.scalar.schema)

    @property
    def name(self) -> str:
        """The type's."""
        return self.kind.__name__


class NoneShape(Shape):
    """None."""

    name = "none"

    def take(self, value: Any) -> None:
        """None only."""
        if value is not None:
            raise refuse(f"must be None, got {shown(value)}")

    def exact(self, value: Any) -> bool:
        """None."""
        return value is None

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """null."""
        return {"type": "null"}


class LiteralShape(Shape):
    """One of some values. 1 is not True, and not ``"1"``."""

    name = "literal"

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values

    def take(self, value: Any) -> Any:
        """The member that equals the value and is of its type."""
        for member in self.values:
            if type(member) is type(value) and member == value:
                return member
        raise refuse(f"must be {_one_of(self.values)}, got {shown(value)}")

    def exact(self, value: Any) -> bool:
        """A member."""
        return any(type(member) is type(value) and member == value for member in self.values)

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """What of it JSON can say."""
        values = [getattr(member, "value", member) for member in self.values]
        return {"const": values[0]} if len(values) == 1 else {"enum": values}


def _one_of(values: Iterable[Any]) -> str:
    texts = [repr(value) for value in values]
    return texts[0] if len(texts) == 1 else f"one of {', '.join(texts[:20])}{' …' if len(texts) > 20 else ''}"


class EnumShape(Shape):
    """A member of an Enum, by the member or its value; its name does not count."""

    def __init__(self, kind: type[Enum]) -> None:
        self.kind = kind

    def take(self, value: Any) -> Any:
        """The member. For members that are ints, a text that is an int will do."""
        if isinstance(value, self.kind):
            return value
        candidates = [value]
        if issubclass(self.kind, int) and isinstance(value, str) and len(value) < 40:
            candidates = [int(value)] if value.strip().lstrip("+-").isdecimal() else []
        for candidate in candidates:
            try:
                return self.kind(candidate)
            except Exception:  # noqa: BLE001, RUF100 - no such value, or whatever a _missing_ of the user's raises
                pass
        raise refuse(f"must be {_one_of(member.value for member in self.kind)}, got {shown(value)}")

    def exact(self, value: Any) -> bool:
        """A member."""
        return isinstance(value, self.kind)

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """By reference."""
        return book.reference(self, self.name)

    def define(self, book: SchemaBook) -> dict[str, Any]:
        """The values."""
        values = [member.value for member in self.kind]
        schema: dict[str, Any] = {"title": self.name, "enum": values}
        kinds = {type(value) for value in values}
        if kinds in ({str}, {int}):
            schema["type"] = "string" if kinds == {str} else "integer"
        return schema

    @property
    def name(self) -> str:
        """The class's."""
        return self.kind.__name__


class UnionShape(Shape):
    """The first member whose type matches exactly, else the leftmost that can make something of the value."""

    name = "union"

    def __init__(self, members: list[Shape]) -> None:
        self.members = members

    def take(self, value: Any) -> Any:
        """As one of the members; when none fits, one problem or more of each but None."""
        for member in self.members:
            if member.exact(value):
                return member.take(value)
        problems: list[Problem] = []
        several = sum(not isinstance(member, NoneShape) for member in self.members) > 1
        for member in self.members:
            try:
                return member.take(value)
            except Refusal as refusal:
                if several or not isinstance(member, NoneShape):
                    place = (member.name,) if several else ()
                    problems += [((*place, *inner), reason) for inner, reason in refusal.problems]
        raise Refusal(problems[:MOST_PROBLEMS])

    def exact(self, value: Any) -> bool:
        """Of any member."""
        return any(member.exact(value) for member in self.members)

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """anyOf."""
        return {"anyOf": [member.schema(book) for member in self.members]}


# --------------------------------------------------------------------------------------------- containers


def is_row(value: Any) -> bool:
    """Whether a value can become a list, set or tuple: it is one, or a generator, a range, a view of a dict. Text,
    bytes and mappings are not."""
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)):
        return False
    return isinstance(value, (Sequence, AbstractSet, MappingView, Iterator, deque))


class ItemsShape(Shape):
    """A list, a set, ``tuple[T, ...]``, a deque; built by `build` from the members. `kinds` may stay what they are
    (a ``Sequence`` is a list or a tuple); the first one is what everything else becomes."""

    def __init__(self, member: Shape, *kinds: Callable[[Iterable[Any]], Any], word: str = "") -> None:
        self.member = member
        self.kinds = kinds
        self.word = word or kinds[0].__name__

    def take(self, value: Any) -> Any:
        """A new container; members that cannot be hashed do not fit into a set."""
        if not is_row(value):
            raise refuse(f"must be a {self.word}, got {shown(value)}")
        members: Any = value
        if self.member is not ANY:
            gathering = Gathering()
            members = [gathering.take(self.member, each, place) for place, each in enumerate(value)]
            gathering.check()
        kind = type(value) if type(value) in self.kinds else self.kinds[0]
        try:
            return kind(members)
        except TypeError as problem:
            raise refuse(f"cannot become a {self.word}: {problem}") from None

    def exact(self, value: Any) -> bool:
        """Also the members."""
        return type(value) in self.kinds and (self.member is ANY or all(map(self.member.exact, value)))

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """An array."""
        schema: dict[str, Any] = {"type": "array", "items": self.member.schema(book)}
        if self.kinds[0] in (set, frozenset):
            schema["uniqueItems"] = True
        return schema

    @property
    def name(self) -> str:
        """The container's."""
        return self.word


class TupleShape(Shape):
    """``tuple[A, B]``: so many members, each of its own shape."""

    name = "tuple"

    def __init__(self, members: list[Shape]) -> None:
        self.members = members

    def take(self, value: Any) -> tuple[Any, ...]:
        """A new tuple."""
        if not is_row(value):
            raise refuse(f"must be a tuple, got {shown(value)}")
        given = list(value)
        if len(given) != len(self.members):
            raise refuse(f"must have {len(self.members)} members, got {len(given)}")
        gathering = Gathering()
        taken = tuple(
            gathering.take(shape, each, place)
            for place, (shape, each) in enumerate(zip(self.members, given, strict=True))
        )
        gathering.check()
        return taken

    def exact(self, value: Any) -> bool:
        """Also the members."""
        return (
            type(value) is tuple
            and len(value) == len(self.members)
            and all(shape.exact(each) for shape, each in zip(self.members, value, strict=True))
        )

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """An array of that length."""
        count = len(self.members)
        members = {"prefixItems": [shape.schema(book) for shape in self.members]} if count else {}
        return {"type": "array", **members, "minItems": count, "maxItems": count}


class MappingShape(Shape):
    """A dict, or a relative of it, from any mapping."""

    name = "dict"

    def __init__(self, key: Shape, value: Shape, build: Callable[[dict[Any, Any], Any], Any], kind: Any) -> None:
        self.key = key
        self.value = value
        self.build = build
        self.kind = kind

    def take(self, value: Any) -> Any:
        """A new dict; keys are coerced too."""
        if not isinstance(value, Mapping):
            raise refuse(f"must be a dict, got {shown(value)}")
        gathering, taken = Gathering(), {}
        for key, member in value.items():
            place = key if isinstance(key, (str, int)) else shown(key)
            own_key = gathering.take(self.key, key, place, "[key]")
            try:
                taken[own_key] = gathering.take(self.value, member, place)
            except TypeError:
                gathering.add(f"cannot be a key: {shown(own_key)} has no hash", place, "[key]")
        gathering.check()
        return self.build(taken, value)

    def exact(self, value: Any) -> bool:
        """Also keys and values, where it is said what they are."""
        return (
            type(value) is self.kind
            and (self.key is ANY or all(map(self.key.exact, value)))
            and (self.value is ANY or all(map(self.value.exact, value.values())))
        )

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """An object."""
        return {"type": "object", "additionalProperties": self.value.schema(book) or True}


class IterableShape(Shape):
    """What can be iterated: concrete lists and the like are coerced, an iterator is passed on unopened."""

    name = "iterable"

    def __init__(self, members: ItemsShape) -> None:
        self.members = members

    def take(self, value: Any) -> Any:
        """The very object, unless it is a list, tuple, set or the like."""
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return self.members.take(value)
        if not isinstance(value, Iterable):
            raise refuse(f"must be iterable, got {shown(value)}")
        return value

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """An array."""
        return self.members.schema(book)


# ---------------------------------------------------------------------------------------- by a question


class InstanceShape(Shape):
    """An object of a class of the user's, passed on as it is."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def take(self, value: Any) -> Any:
        """The very object."""
        if not self.exact(value):
            raise refuse(f"must be a {self.name}, got {shown(value)}")
        return value

    def exact(self, value: Any) -> bool:
        """Anything, when the class cannot be asked (a Protocol that is not for run time)."""
        try:
            return isinstance(value, self.kind)
        except TypeError:
            return True

    @property
    def name(self) -> str:
        """The class's."""
        return str(getattr(self.kind, "__name__", self.kind))


class PredicateShape(Shape):
    """What passes a test: callables, subclasses."""

    def __init__(self, test: Callable[[Any], bool], wanted: str) -> None:
        self.test = test
        self.wanted = wanted

    def take(self, value: Any) -> Any:
        """The very object."""
        if not self.test(value):
            raise refuse(f"must be {self.wanted}, got {shown(value)}")
        return value

    def exact(self, value: Any) -> bool:
        """The same question."""
        return self.test(value)

    @property
    def name(self) -> str:
        """What is wanted."""
        return self.wanted

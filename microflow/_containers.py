# SPDX-License-Identifier: Apache-2.0
"""What stands inside arguments: annotations, finding futures in containers, replacing them.

:class:`unmapped`, :class:`allow_failure`, :class:`quote` and :class:`opaque` say how a value is treated.
:func:`find` collects what stands in nested containers; :func:`visit_collection` visits and replaces it.

How a collection is visited
===========================

Goal: replace members anywhere inside nested containers, hand back the *same object* wherever nothing
changed below it, keep what was shared shared, and survive cycles and any depth.

What does not work: a recursive function ends at about 1,000 levels; a memo keyed by the ``id()`` of
temporary objects gives one object the result of another, because ids are used again; rebuilding on the
way up cannot know whether the container at the other end of a cycle will change.

The rule: three passes, each a loop. (1) *Look*: call the visitor on every node, parents first, and note
the containers and their members as a graph of :class:`_Node`; the graph keeps every object alive, so an
id means one object. (2) *Mark*: a container is marked when a member was replaced or is itself marked;
the mark travels from members to containers until nothing new is marked, around cycles too. (3) *Rebuild*
what is marked, members first. A mutable container that is met again while its members are being rebuilt
is put in place empty and filled at the end: that closes the cycle.

Known holes: a cycle that closes through a dataclass, a model or a frozen container keeps the old object
at that one place. A replacement that contains the node that it replaces will contain itself.
"""

from __future__ import annotations

import io
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from .exceptions import MicroflowException

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------- annotations


class BaseAnnotation(tuple[T]):
    """A value with a word on how to treat it. Iterating gives the one value.

    Equal only to the same class with equal content, and not hashable.
    """

    __slots__ = ()

    def __new__(cls, value: T) -> BaseAnnotation[T]:
        """Annotate `value`."""
        return super().__new__(cls, (value,))

    def __getnewargs__(self) -> tuple[T]:  # tuple's own would wrap the value twice in a copy
        return (self.value,)

    @property
    def value(self) -> T:
        """The annotated value."""
        return tuple.__getitem__(self, 0)

    def unwrap(self) -> T:
        """The annotated value."""
        return self.value

    def rewrap(self, value: T) -> BaseAnnotation[T]:
        """The same annotation around another value."""
        return type(self)(value)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:  # tuple defines its own
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # a tuple's hash would not agree with this equality

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"


class NotSet:
    """Stands where nothing was given, in places where None means something. The class itself is the mark."""


class unmapped(BaseAnnotation[T]):
    """In ``map``: pass this value, whole, to every child. ``unmapped(x)[anything] is x``."""

    __slots__ = ()

    def __getitem__(self, _: object) -> T:  # type: ignore[override]  # as long as it is asked to be
        return self.value


class allow_failure(BaseAnnotation[T]):
    """Run even if what this value depends on failed; the exception is then the argument."""

    __slots__ = ()


class quote(BaseAnnotation[T]):
    """Pass this value as it is: futures in it are neither waited for nor resolved."""

    __slots__ = ()

    def unquote(self) -> T:
        """The quoted value."""
        return self.value


class opaque(BaseAnnotation[T]):
    """Resolve this value if it is itself a future, and look at nothing inside it."""

    __slots__ = ()


class freeze(BaseAnnotation[T]):
    """A value that is plain JSON and is handed over as it is. TypeError when JSON cannot carry it."""

    __slots__ = ()

    def __new__(cls, value: T) -> freeze[T]:
        """Annotate `value`, which is looked through now."""
        import json  # rare here: only for this annotation

        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"freeze() takes plain JSON, and not this {type(value).__name__}: {error}") from error
        return super().__new__(cls, value)  # type: ignore[return-value]  # mypy takes it for the base class

    def unfreeze(self) -> T:
        """The value."""
        return self.value


# ---------------------------------------------------------------------------------- what has members, and how

_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes, type})


class _Shape:
    """A kind of container: its members as a list, and the same container with other members.

    ``shell`` and ``fill`` are the two halves of ``rebuild`` where the container can be made empty first.
    """

    __slots__ = ()

    def members(self, value: Any) -> list[Any]:
        return list(value)

    def rebuild(self, value: Any, members: list[Any]) -> Any:
        new = self.shell(value)
        self.fill(new, members)
        return new

    def shell(self, value: Any) -> Any:
        """An empty container of the same kind, or None when it cannot be made without its members.

        A copy that is emptied keeps what a constructor would lose or not accept: attributes, the factory of a
        defaultdict, the length of a deque.
        """
        kind = type(value)
        if kind in (list, dict, set):
            return kind()
        import copy  # rare: only for subclasses

        new = copy.copy(value)
        new.clear()
        return new

    def fill(self, shell: Any, members: list[Any]) -> None:
        shell.extend(members)


class _Sets(_Shape):
    def fill(self, shell: Any, members: list[Any]) -> None:
        shell.update(members)


class _Mappings(_Shape):
    """Members are keys and values in turn."""

    def members(self, value: Any) -> list[Any]:
        return [member for item in value.items() for member in item]

    def fill(self, shell: Any, members: list[Any]) -> None:
        for key, value in zip(members[::2], members[1::2], strict=True):
            shell[key] = value  # update() of a Counter would add


class _Fixed(_Shape):
    """What cannot be made empty and filled later."""

    def shell(self, value: Any) -> Any:
        return None


class _FrozenSets(_Fixed):
    def rebuild(self, value: Any, members: list[Any]) -> Any:
        return type(value)(members)


class _Tuples(_Fixed):
    def rebuild(self, value: Any, members: list[Any]) -> Any:
        kind = type(value)
        if kind is tuple:
            return tuple(members)
        if hasattr(kind, "_make"):
            return kind._make(members)
        try:
            new = tuple.__new__(kind, members)  # its own __new__ may take anything
        except TypeError:
            return kind(members)  # a structure sequence of C, such as time.struct_time
        if hasattr(value, "__dict__"):
            new.__dict__.update(value.__dict__)
        return new


class _Annotations(_Fixed):
    def members(self, value: BaseAnnotation[Any]) -> list[Any]:
        return [value.unwrap()]

    def rebuild(self, value: BaseAnnotation[Any], members: list[Any]) -> Any:
        return value.rewrap(members[0])


class _Dataclasses(_Fixed):
    """Members are the fields that are set."""

    def _fields(self, value: Any) -> list[str]:
        import dataclasses  # loaded already: here is an instance of one

        return [field.name for field in dataclasses.fields(value) if _has(value, field.name)]

    def members(self, value: Any) -> list[Any]:
        return [getattr(value, name) for name in self._fields(value)]

    def rebuild(self, value: Any, members: list[Any]) -> Any:
        """As ``dataclasses.replace`` does, so that ``__post_init__`` runs; where that cannot work (init-only
        variables, an ``__init__`` of its own), a copy whose fields are set."""
        fields = type(value).__dataclass_fields__
        given = dict(zip(self._fields(value), members, strict=True))
        replaceable = type(value).__dataclass_params__.init and not any(
            field._field_type.name == "_FIELD_INITVAR" for field in fields.values()
        )
        if not replaceable:
            return _copy_with(value, given)
        new = type(value)(**{name: member for name, member in given.items() if fields[name].init})
        for name, member in given.items():
            # __post_init__ made this one anew, unless the visitor changed it or there is none
            if not fields[name].init and (member is not getattr(value, name) or not hasattr(value, "__post_init__")):
                object.__setattr__(new, name, member)
        return new


class _Models(_Fixed):
    """Pydantic models, known by their looks. Read and written past validation and lazy attributes."""

    def _places(self, value: Any) -> list[tuple[dict[str, Any], str]]:
        extra = object.__getattribute__(value, "__pydantic_extra__") if _has(value, "__pydantic_extra__") else None
        fields = object.__getattribute__(value, "__dict__")
        return [(where, name) for where in (fields, extra) if isinstance(where, dict) for name in where]

    def members(self, value: Any) -> list[Any]:
        return [where[name] for where, name in self._places(value)]

    def rebuild(self, value: Any, members: list[Any]) -> Any:
        import copy  # rare: only for models

        new = copy.copy(value)
        for (where, name), member in zip(self._places(new), members, strict=True):
            where[name] = member
        return new


def _has(value: Any, name: str) -> bool:
    try:
        object.__getattribute__(value, name)
    except AttributeError:
        return False
    return True


def _copy_with(value: Any, attributes: dict[str, Any]) -> Any:
    import copy  # rare: only for unusual dataclasses

    new = copy.copy(value)
    for name, member in attributes.items():
        object.__setattr__(new, name, member)  # frozen ones too
    return new


_LISTS, _ANNOTATIONS, _DATACLASSES, _MODELS = _Shape(), _Annotations(), _Dataclasses(), _Models()
_BY_BASE: dict[type, _Shape] = {
    BaseAnnotation: _ANNOTATIONS,  # before tuple
    list: _LISTS,
    tuple: _Tuples(),
    dict: _Mappings(),
    set: _Sets(),
    frozenset: _FrozenSets(),
    deque: _LISTS,
}
_EXACT: dict[type, _Shape] = {
    **_BY_BASE,
    unmapped: _ANNOTATIONS,
    allow_failure: _ANNOTATIONS,
    quote: _ANNOTATIONS,
    opaque: _ANNOTATIONS,
}


def _shape_of(value: object) -> _Shape | None:
    """How to look inside, or None for what has no members: strings, iterators, files, mocks, plain objects."""
    kind = type(value)  # not isinstance: a mock claims to be anything
    if kind in _SCALARS:
        return None
    exact = _EXACT.get(kind)
    if exact is not None:
        return exact
    for base, shape in _BY_BASE.items():
        if issubclass(kind, base):
            return shape
    if hasattr(kind, "__dataclass_fields__"):
        return _DATACLASSES
    for name in ("model_fields", "__fields__"):
        if isinstance(getattr(kind, name, None), dict):
            return _MODELS if _has(value, "__dict__") else None
    return None


# ------------------------------------------------------------------------------------------ looking for things


def contains_special(values: Iterable[object]) -> bool:
    """Whether any of these might be, or hold, anything but a plain scalar. False is certain; fast."""
    return not _SCALARS.issuperset(map(type, values))


def members_of(value: object) -> list[Any]:
    """What stands directly in a value; nothing for what is not looked into."""
    shape = _shape_of(value)
    return [] if shape is None else shape.members(value)


def find(expr: Any, kinds: type | tuple[type, ...] | Callable[[Any], bool]) -> list[Any]:
    """All objects of some classes (or that a predicate accepts) in nested containers, each once, in order.

    Nothing inside ``quote`` is found; of ``opaque`` only the content itself. What was found is not searched.
    Plain scalars are never found: calls whose arguments hold nothing else are the rule, and leave at once.
    """
    if type(expr) in _SCALARS:
        return []
    if type(expr) is dict and _SCALARS.issuperset(map(type, expr.values())) and _SCALARS.issuperset(map(type, expr)):
        return []
    if isinstance(kinds, (type, tuple)):
        classes = kinds
        return _find(expr, lambda value: isinstance(value, classes))
    return _find(expr, kinds)


def _find(expr: Any, matches: Callable[[Any], bool]) -> list[Any]:
    found: list[Any] = []
    seen: dict[int, Any] = {}  # by identity; holds the objects, so that no id is used again
    stack = [expr]
    while stack:
        value = stack.pop()
        if type(value) in _SCALARS or id(value) in seen:
            continue
        seen[id(value)] = value
        if matches(value):
            found.append(value)
            continue
        shape = _shape_of(value)
        if shape is None or isinstance(value, quote):
            continue
        members = shape.members(value)
        if isinstance(value, opaque):
            members = [member for member in members if matches(member)]
        if contains_special(members):
            stack.extend(reversed(members))
    return found


def is_iterable(value: object) -> bool:
    """Whether ``map`` maps over it: ``iter()`` works, and it is no str, bytes or file."""
    if isinstance(value, (str, bytes, io.IOBase)):
        return False
    try:
        iter(value)  # type: ignore[call-overload]  # that is the question
    except TypeError:
        return False
    return True


# -------------------------------------------------------------------------------------------------- visiting


class StopVisiting(BaseException):
    """Raised by a visitor: keep this node as it is, and do not look inside. ``StopVisiting(x)``: put `x` in
    its place, and do not look inside of that either."""


def visit_collection(
    expr: Any,
    visit_fn: Callable[..., Any],
    *,
    return_data: bool = False,
    max_depth: int = -1,
    context: dict[str, Any] | None = None,
    remove_annotations: bool = False,
) -> Any:
    """Call ``visit_fn(node)`` for `expr` and everything in it: containers before their members, dict keys too.

    With `return_data` each node is replaced by what `visit_fn` returns, the visit goes on inside the
    replacement, and the whole is returned: the same object if nothing changed. Otherwise None is returned.

    * `max_depth`: how many levels below `expr` are visited; an annotation is a level. Negative: all.
    * `context`: `visit_fn` gets a copy as second argument. What it changes there is seen by the visits of
      the node's members only. Inside an annotation, ``context["annotation"]`` is that annotation.
    * `remove_annotations`: put the bare value where an annotation was.

    A container that stands in several places (under one annotation, at one depth if that is limited) is
    visited once; anything else as often as it is met. MicroflowException, naming the class, when a container
    cannot be rebuilt with its new members.
    """
    visit = _Visit(visit_fn, return_data, remove_annotations)
    root = visit.look(expr, max_depth, context)
    return visit.rebuild(root) if return_data else None


_NEW, _OPEN, _DONE = range(3)
MAX_REPLACEMENTS = 10_000  # inside each other: then the visitor makes something new for ever


class _Node:
    """A container that was met. ``value`` is the visitor's replacement, ``members`` what stands in it, and
    ``items`` what came of each member: another node, or the replacement itself."""

    __slots__ = (
        "context",
        "depth",
        "items",
        "marked",
        "members",
        "parents",
        "replacements",
        "result",
        "shape",
        "state",
        "value",
    )

    def __init__(self, value: Any, shape: _Shape, depth: int, context: dict[str, Any] | None) -> None:
        self.value = value
        self.replacements = 0  # how many of those around it the visitor made
        self.shape = shape
        self.members = shape.members(value)
        self.items: list[Any] = []
        self.parents: list[_Node] = []
        self.depth = 0 if isinstance(value, opaque) else depth - 1 if depth > 0 else depth  # of the members
        self.context = context  # the members get copies
        self.marked = False
        self.state = _NEW
        self.result: Any = None


class _Visit:
    """One call of :func:`visit_collection`; the essay above names the passes."""

    def __init__(self, visit_fn: Callable[..., Any], return_data: bool, remove_annotations: bool) -> None:
        self.visit_fn = visit_fn
        self.return_data = return_data
        self.remove_annotations = remove_annotations
        self.nodes: list[_Node] = []
        self.stack: list[_Node] = []
        # what came of a container, and the node of a replacement; both hold their objects, so that no id is used again
        self.met: dict[tuple[int, int, int], tuple[Any, Any]] = {}
        self.entered: dict[tuple[int, int, int], _Node] = {}

    def look(self, expr: Any, depth: int, context: dict[str, Any] | None) -> Any:
        """Visit everything; what came of `expr`: a node, or the replacement itself."""
        root = self.meet(expr, depth, context)
        while self.stack:
            node = self.stack[-1]
            if len(node.items) == len(node.members):
                self.stack.pop()
                continue
            member = node.members[len(node.items)]
            item = self.meet(member, node.depth, node.context)
            node.items.append(item)
            if isinstance(item, _Node):
                item.parents.append(node)
                if item is self.stack[-1]:  # it is new
                    item.replacements = node.replacements + (item.value is not member)
                    if item.replacements > MAX_REPLACEMENTS:
                        raise MicroflowException(f"replacing {type(member).__name__} objects never ends")
        return root

    def meet(self, value: Any, depth: int, context: dict[str, Any] | None) -> Any:
        annotation = id(context.get("annotation")) if context is not None else 0
        key = (id(value), annotation, depth)
        if key in self.met:
            return self.met[key][1]
        item = self.visit(value, annotation, depth, context.copy() if context is not None else None)
        if _shape_of(value) is not None:
            self.met[key] = (value, item)
        return item

    def visit(self, value: Any, annotation: int, depth: int, context: dict[str, Any] | None) -> Any:
        try:
            new = self.visit_fn(value) if context is None else self.visit_fn(value, context)
        except StopVisiting as stop:
            return stop.args[0] if stop.args and self.return_data else value
        if self.return_data:
            value = new
        shape = _shape_of(value) if depth != 0 else None
        if shape is None:
            return value
        key = (id(value), annotation, depth)
        node = self.entered.get(key)
        if node is None:
            node = self.entered[key] = _Node(value, shape, depth, context)
            self.nodes.append(node)
            self.stack.append(node)
            if context is not None and shape is _ANNOTATIONS:
                context["annotation"] = value
        return node

    def rebuild(self, root: Any) -> Any:
        """The replacement of everything, `root` being what came of the outermost object."""
        self.mark()
        stack = [root] if isinstance(root, _Node) else []
        while stack:
            node = stack[-1]
            if node.state == _NEW:
                node.state = _OPEN
                stack.extend(item for item in node.items if isinstance(item, _Node) and item.marked)
                continue
            stack.pop()
            if node.state == _OPEN:
                self.close(node)
                node.state = _DONE
        return self.settled(root)

    def mark(self) -> None:
        waiting = [node for node in self.nodes if self.is_replaced(node)]
        while waiting:
            node = waiting.pop()
            if not node.marked:
                node.marked = True
                waiting.extend(node.parents)

    def is_replaced(self, node: _Node) -> bool:
        """Whether a direct member was replaced, or the node is an annotation that gives way to its content."""
        if self.remove_annotations and node.shape is _ANNOTATIONS:
            return True
        return any(
            (item.value if isinstance(item, _Node) else item) is not member
            for item, member in zip(node.items, node.members, strict=True)
        )

    def close(self, node: _Node) -> None:
        """Rebuild one container. Its members are rebuilt, but for those that it stands in itself."""
        if not node.marked or (self.remove_annotations and node.shape is _ANNOTATIONS):
            return
        try:
            members = [self.settled(item) for item in node.items]
            if node.result is None:
                node.result = node.shape.rebuild(node.value, members)
            else:
                node.shape.fill(node.result, members)  # it stands in a cycle
        except Exception as error:  # constructors of the user's classes may raise anything
            name = f"{type(node.value).__module__}.{type(node.value).__qualname__}"
            raise MicroflowException(
                f"a {name} cannot be made again with replaced members ({type(error).__name__}: {error}). "
                f"Wrap it in quote() to pass it as it is, or pass its members in a list or dict."
            ) from error

    def settled(self, item: Any) -> Any:
        """What stands at last where `item` came from. Makes the empty container that closes a cycle."""
        while self.remove_annotations and isinstance(item, _Node) and item.shape is _ANNOTATIONS:
            item = item.items[0]
        if not isinstance(item, _Node):
            return item
        if not item.marked:
            return item.value
        if item.result is None:
            item.result = item.shape.shell(item.value)
        return item.value if item.result is None else item.result

# SPDX-License-Identifier: Apache-2.0
"""From annotations to checked values and to JSON schema.

Goal: parameters and inputs mean what their annotations say, without a library for it: ``"5"`` given for an int is 5,
``{"x": 1}`` given for a dataclass is an object of it, and everything that is wrong is said at once, each with its
place. The conversions of single values stand in ``_scalars``, what containers and classes do in ``_shapes``; here
annotations, in every spelling since 3.10, become shapes.

What does not work: ``typing.get_type_hints``. One annotation that cannot be resolved costs all others; before 3.11 a
default of None makes ``Optional`` of everything; and names in ``list["Node"]`` stay text. So each annotation
is resolved by itself, where it stands.

The rule for what is not understood: a class is asked by ``isinstance``, anything else is accepted. A name that cannot
be resolved (it stands in a function, or only under ``TYPE_CHECKING``) is tried again at the next call and accepted
until then. ``*args`` and ``**kwargs`` are never coerced.

Annotations are code of the user's, so evaluating the text of one is no more than Python does itself; values are
never evaluated.
"""

from __future__ import annotations

import sys
import typing
from collections import Counter, OrderedDict, abc, defaultdict, deque
from enum import Enum
from types import FunctionType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

from ._field_shapes import Field, FieldsShape, ModelShape, NamedTupleShape
from ._plain_json import plain
from ._scalars import scalar_of
from ._shapes import (
    ANY,
    EnumShape,
    Gathering,
    InstanceShape,
    ItemsShape,
    IterableShape,
    LiteralShape,
    MappingShape,
    NoneShape,
    PredicateShape,
    Refusal,
    ScalarShape,
    SchemaBook,
    Shape,
    TupleShape,
    UnionShape,
    refuse,
)
from .exceptions import ParameterTypeError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._arguments import Parameters

_UNRESOLVED = object()

#: what an annotation is wrapped in that says something of the field, not of its type
_WRAPPERS = frozenset({"Final", "ClassVar", "Required", "NotRequired", "ReadOnly", "Unpack"})


def _keep_factory(taken: dict[Any, Any], given: Any) -> Any:
    return defaultdict(getattr(given, "default_factory", None), taken)


#: containers with members of one kind: what they may be, the first is what everything else becomes
_ROWS: dict[Any, tuple[Callable[..., Any], ...]] = {
    list: (list,),
    set: (set,),
    frozenset: (frozenset,),
    deque: (deque,),
    abc.Sequence: (list, tuple, deque),
    abc.MutableSequence: (list, deque),
    abc.Collection: (list, tuple, set, frozenset, deque),
    abc.Reversible: (list, tuple, deque),
    abc.Set: (set, frozenset),
    abc.MutableSet: (set,),
}
_MAPPINGS: dict[Any, tuple[Callable[[dict[Any, Any], Any], Any], type]] = {
    dict: (lambda taken, _: taken, dict),
    abc.Mapping: (lambda taken, _: taken, dict),
    abc.MutableMapping: (lambda taken, _: taken, dict),
    OrderedDict: (lambda taken, _: OrderedDict(taken), OrderedDict),
    defaultdict: (_keep_factory, defaultdict),
    Counter: (lambda taken, _: Counter(taken), Counter),
}
_ITERABLES = frozenset({abc.Iterable, abc.Iterator, abc.Generator})
#: names for files that no file is an instance of
_FILES = frozenset({typing.IO, typing.TextIO, typing.BinaryIO})


def _is_file(value: Any) -> bool:
    return callable(getattr(value, "read", None)) or callable(getattr(value, "write", None))


class Reader:
    """Reads annotations: a class once, so that a class may hold itself."""

    def __init__(self) -> None:
        self._classes: dict[Any, Shape] = {}
        #: names that could not be resolved
        self.unresolved: list[str] = []

    def read(self, annotation: Any, names: Mapping[str, Any] | None = None) -> Shape:
        """The shape that an annotation asks for; text in it is resolved by `names`."""
        names = names if names is not None else {}
        if isinstance(annotation, str):
            return self._text(annotation, names)
        if annotation is None or annotation is type(None):
            return NoneShape()
        if annotation is Any or annotation is object or isinstance(annotation, TypeVar):
            return ANY
        origin = get_origin(annotation)
        if origin is not None:
            return self._generic(annotation, origin, get_args(annotation), names)
        if isinstance(annotation, type):
            return self._class(annotation, ())
        return self._special(annotation, names)

    def _text(self, text: str, names: Mapping[str, Any]) -> Shape:
        try:
            found = eval(text, dict(names))
        except Exception:  # a name that is not there yet, or an expression that only a type checker understands
            self.unresolved.append(text)
            return ANY
        return ANY if isinstance(found, str) and found == text else self.read(found, names)

    def _special(self, annotation: Any, names: Mapping[str, Any]) -> Shape:
        """Neither a class nor something with brackets."""
        kind = type(annotation).__name__
        if kind == "ForwardRef":
            module = sys.modules.get(annotation.__forward_module__ or "")
            own = getattr(module, "__dict__", {})
            return self._text(annotation.__forward_arg__, {**own, **names})
        if kind == "TypeAliasType":
            return self._alias(annotation, annotation.__value__, names)
        if kind == "InitVar":
            return self.read(annotation.type, names)
        if hasattr(annotation, "__supertype__"):
            return self.read(annotation.__supertype__, names)
        return self._class(str, ()) if getattr(annotation, "_name", None) == "LiteralString" else ANY

    def _alias(self, alias: Any, value: Any, names: Mapping[str, Any]) -> Shape:
        """``type Json = …`` may name itself."""
        if alias not in self._classes:
            deferred = self._classes[alias] = _Deferred(str(alias))
            deferred.shape = self.read(value, names)
        return self._classes[alias]

    def _generic(self, annotation: Any, origin: Any, args: tuple[Any, ...], names: Mapping[str, Any]) -> Shape:
        """Something with brackets."""
        if origin is Union or origin is UnionType:
            return UnionShape([self.read(member, names) for member in args])
        name = getattr(origin, "_name", None) or getattr(origin, "__name__", "")
        if origin is Literal or name == "Literal":
            return LiteralShape(args)
        if hasattr(annotation, "__metadata__"):
            return bounded(self.read(annotation.__origin__, names), annotation.__metadata__)
        if name in _WRAPPERS:
            return self.read(args[0], names) if args else ANY
        if origin is type:
            return self._subclass(args[0] if args else Any)
        if origin is abc.Callable:
            return PredicateShape(callable, "callable")
        if type(origin).__name__ == "TypeAliasType":
            return self.read(origin.__value__, names)
        if origin is tuple and args in ((), ((),)) and annotation is not typing.Tuple:  # noqa: UP006 - that one is any tuple
            return TupleShape([])  # tuple[()]
        if isinstance(origin, type):
            return self._class(origin, args, names)
        return ANY

    def _subclass(self, base: Any) -> Shape:
        if get_origin(base) in (Union, UnionType):
            base = get_args(base)
        bases = base if isinstance(base, tuple) else (base,)
        if base is Any or not all(isinstance(each, type) for each in bases):
            return PredicateShape(lambda value: isinstance(value, type), "a class")
        wanted = f"a subclass of {' or '.join(each.__name__ for each in bases)}"
        return PredicateShape(lambda value: isinstance(value, type) and issubclass(value, bases), wanted)

    def _class(self, kind: Any, args: tuple[Any, ...], names: Mapping[str, Any] | None = None) -> Shape:
        scalar = scalar_of(kind)
        if scalar is not None:
            return ScalarShape(kind, scalar)
        if kind is tuple:
            return self._tuple(args, names)
        if kind in _ROWS or kind in _ITERABLES:
            member = self.read(args[0], names) if args else ANY
            if kind in _ITERABLES:
                return IterableShape(ItemsShape(member, *_ROWS[abc.Collection]))
            return ItemsShape(member, *_ROWS[kind], word=kind.__name__.lower())
        if kind in _MAPPINGS:
            key = self.read(args[0], names) if args else ANY
            value = self.read(int if kind is Counter else args[-1], names) if args else ANY
            return MappingShape(key, value, *_MAPPINGS[kind])
        if kind is abc.Callable:
            return PredicateShape(callable, "callable")
        if kind is type:
            return self._subclass(Any)
        if kind in _FILES:
            return PredicateShape(_is_file, "an open file")
        if kind not in self._classes:
            self._classes[kind] = self._user_class(kind)
        return self._classes[kind]

    def _tuple(self, args: tuple[Any, ...], names: Mapping[str, Any] | None) -> Shape:
        if not args or (len(args) == 2 and args[1] is Ellipsis):
            return ItemsShape(self.read(args[0], names) if args else ANY, tuple)
        return TupleShape([self.read(each, names) for each in args])

    def _user_class(self, kind: Any) -> Shape:
        if issubclass(kind, Enum):
            return EnumShape(kind)
        if is_model(kind):
            return ModelShape(kind)
        if "__dataclass_fields__" in kind.__dict__ or hasattr(kind, "__dataclass_fields__"):
            return self._dataclass(kind)
        if issubclass(kind, dict) and hasattr(kind, "__total__"):
            return self._typed_dict(kind)
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return self._named_tuple(kind)
        return InstanceShape(kind)

    # ------------------------------------------------------------------------------------ classes with fields

    def fields_of(self, kind: Any) -> dict[str, Any]:
        """Field -> annotation and where it stands, of a class and its bases; nothing is resolved yet."""
        found: dict[str, Any] = {}
        for base in reversed(kind.__mro__):
            names = {**getattr(sys.modules.get(base.__module__), "__dict__", {}), **base.__dict__}
            found.update({name: (annotation, names) for name, annotation in own_annotations(base).items()})
        return found

    def _dataclass(self, kind: Any) -> Shape:
        shape = self._classes[kind] = FieldsShape(kind.__name__, lambda fields: kind(**fields), kind)
        annotations = self.fields_of(kind)
        for name, field in kind.__dataclass_fields__.items():
            if field._field_type.name == "_FIELD_CLASSVAR" or not field.init:
                continue
            missing = type(field.default).__name__ == "_MISSING_TYPE"
            required = missing and type(field.default_factory).__name__ == "_MISSING_TYPE"
            default = None if missing else schema_default(field.default)
            shape.fields[name] = Field(self.read(*annotations.get(name, (field.type, {}))), required, default)
        return shape

    def _typed_dict(self, kind: Any) -> Shape:
        shape = self._classes[kind] = FieldsShape(kind.__name__, lambda fields: fields, None)
        required = getattr(kind, "__required_keys__", frozenset(kind.__annotations__))
        for name, (annotation, names) in self.fields_of(kind).items():
            word = _requirement(annotation, names)
            shape.fields[name] = Field(self.read(annotation, names), word != "NotRequired" and (
                word == "Required" or name in required))  # fmt: skip
        return shape

    def _named_tuple(self, kind: Any) -> Shape:
        shape = self._classes[kind] = NamedTupleShape(kind.__name__, lambda fields: kind(**fields), kind)
        annotations, defaults = self.fields_of(kind), kind._field_defaults
        for name in kind._fields:
            annotation = annotations.get(name, (Any, {}))
            shape.fields[name] = Field(self.read(*annotation), name not in defaults, schema_default(defaults.get(name)))
        return shape


class _Deferred(Shape):
    """Stands for a type alias while its value is read."""

    shape: Shape

    def __init__(self, name: str) -> None:
        self._name = name
        self.shape = ANY

    def take(self, value: Any) -> Any:
        """As the alias."""
        return self.shape.take(value)

    def exact(self, value: Any) -> bool:
        """As the alias."""
        return self.shape.exact(value)

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """By reference, since it may hold itself."""
        return book.reference(self, self._name)

    def define(self, book: SchemaBook) -> dict[str, Any]:
        """The alias's."""
        return self.shape.schema(book)

    @property
    def name(self) -> str:
        """The alias's."""
        return self._name


def is_model(kind: Any) -> bool:
    """Whether a class validates by itself, judged by what it has."""
    if not isinstance(kind, type):
        return False
    return (hasattr(kind, "model_fields") and callable(getattr(kind, "model_validate", None))) or (
        hasattr(kind, "__fields__") and callable(getattr(kind, "parse_obj", None))
    )


def own_annotations(thing: Any) -> dict[str, Any]:
    """The annotations that a function, or a class without its bases, was given; {} when they cannot be read."""
    if sys.version_info >= (3, 14):
        import annotationlib  # 3.14 evaluates them when asked, and may fail: names that are missing stay names

        return dict(annotationlib.get_annotations(thing, format=annotationlib.Format.FORWARDREF))
    if isinstance(thing, type):
        return dict(vars(thing).get("__annotations__", {}))  # not inherited ones
    return dict(getattr(thing, "__annotations__", None) or {})


def _requirement(annotation: Any, names: Mapping[str, Any]) -> str:
    """"Required" or "NotRequired", if an annotation says one of them."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__forward_arg__", None)
    if text is not None:
        try:
            annotation = eval(text, dict(names))
        except Exception:  # it counts as not saying so, as in Reader
            return ""
    origin = get_origin(annotation)
    return str(getattr(origin, "_name", None) or getattr(origin, "__name__", ""))


def schema_default(value: Any) -> Any:
    """A default as a schema can have it; None for none."""
    try:
        return plain(value, strict=True)
    except (TypeError, ValueError):
        return None


# ------------------------------------------------------------------------------------------------ Annotated

#: attribute of what stands in Annotated -> the word of JSON schema, whether a value passes, and how to say it
_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool], str]] = {
    "gt": ("exclusiveMinimum", lambda value, bound: value > bound, "must be greater than"),
    "ge": ("minimum", lambda value, bound: value >= bound, "must be at least"),
    "lt": ("exclusiveMaximum", lambda value, bound: value < bound, "must be less than"),
    "le": ("maximum", lambda value, bound: value <= bound, "must be at most"),
    "multiple_of": ("multipleOf", lambda value, bound: value % bound == 0, "must be a multiple of"),
    "min_length": ("minLength", lambda value, bound: len(value) >= bound, "must have a length of at least"),
    "max_length": ("maxLength", lambda value, bound: len(value) <= bound, "must have a length of at most"),
}


class BoundedShape(Shape):
    """``Annotated[T, …]`` whose metadata bound the value."""

    def __init__(self, inner: Shape, bounds: list[tuple[str, Any]], description: str | None) -> None:
        self.inner = inner
        self.bounds = bounds
        self.description = description

    def take(self, value: Any) -> Any:
        """The inner shape's, if it is within the bounds."""
        taken = self.inner.take(value)
        for name, bound in self.bounds:
            _, passes, words = _BOUNDS[name]
            try:
                if not passes(taken, bound):
                    raise refuse(f"{words} {bound!r}, got {taken!r}")
            except TypeError:  # the bound is of another type than the value: whatever it means, it is not ours
                continue
            except ArithmeticError:  # a NaN, or a multiple of 0
                raise refuse(f"{words} {bound!r}, got {taken!r}") from None
        return taken

    def exact(self, value: Any) -> bool:
        """Within the bounds too."""
        try:
            return self.inner.exact(value) and all(_BOUNDS[name][1](value, bound) for name, bound in self.bounds)
        except (TypeError, ArithmeticError):
            return False

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """With the bounds, as far as JSON can say them."""
        schema = self.inner.schema(book)
        if schema.get("type") in ("integer", "number", "string", "array"):
            for name, bound in self.bounds:
                word = _BOUNDS[name][0]
                schema[word.replace("Length", "Items") if schema["type"] == "array" else word] = schema_default(bound)
        if self.description:
            schema["description"] = self.description
        return schema

    @property
    def name(self) -> str:
        """The inner shape's."""
        return self.inner.name


def bounded(inner: Shape, metadata: tuple[Any, ...]) -> Shape:
    """A shape with what is understood of the metadata of ``Annotated``."""
    bounds: list[tuple[str, Any]] = []
    description = None
    for each in (item for one in metadata for item in (one, *(getattr(one, "metadata", None) or ()))):
        if isinstance(each, type):
            continue
        bounds += [(name, bound) for name in _BOUNDS if (bound := getattr(each, name, None)) is not None]
        text = getattr(each, "description", None)
        description = text if isinstance(text, str) else description
    return BoundedShape(inner, bounds, description) if bounds or description else inner


# ----------------------------------------------------------------------------------------------- in use


def take(shape: Shape, value: Any) -> Any:
    """``shape.take``, with a value that holds itself, or is very deep, as a problem like any other."""
    try:
        return shape.take(value)
    except RecursionError:
        raise refuse("is nested too deeply, or holds itself") from None


def coerce(annotation: Any, value: Any) -> Any:
    """The value as `annotation` wants it. ValidationError, with every problem and its place, when it cannot be."""
    try:
        return take(Reader().read(annotation), value)
    except Refusal as refusal:
        raise ValidationError("the value does not fit", refusal.problems) from None


def json_schema(annotation: Any) -> dict[str, Any]:
    """The JSON schema of what `annotation` accepts."""
    book = SchemaBook()
    return book.whole(Reader().read(annotation).schema(book))


class Checks:
    """What the annotations of a function ask of its parameters, read once."""

    def __init__(self, fn: Any, parameters: Parameters) -> None:
        reader = Reader()
        function = _annotated(fn)
        annotations = own_annotations(function)
        names = dict(getattr(function, "__globals__", {}))
        names.update({each.__name__: each for each in getattr(function, "__type_params__", ())})
        self.defaults = parameters.defaults
        self.shapes = {
            name: reader.read(annotations[name], names) if name in annotations else ANY
            for name in parameters.names
            if name not in (parameters.var_positional, parameters.var_keyword)
        }
        self._wanted = {name: shape for name, shape in self.shapes.items() if shape is not ANY}
        #: whether every name could be resolved; if not, another reading may find more
        self.complete = not reader.unresolved

    def take(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters as the annotations want them. ParameterTypeError with all that is wrong."""
        if not self._wanted:
            return parameters
        gathering = Gathering()
        taken = dict(parameters)
        for name, shape in self._wanted.items():
            if name in taken:
                try:
                    taken[name] = take(shape, taken[name])
                except Refusal as refusal:
                    gathering.problems += [((name, *place), reason) for place, reason in refusal.problems]
        if gathering.problems:
            raise ParameterTypeError.from_problems(gathering.problems)
        return taken

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the parameters."""
        book = SchemaBook()
        properties: dict[str, Any] = {}
        for place, (name, shape) in enumerate(self.shapes.items()):
            properties[name] = {**shape.schema(book), "title": name, "position": place}
            default = schema_default(self.defaults.get(name))
            if default is not None:
                properties[name]["default"] = default
        required = [name for name in self.shapes if name not in self.defaults]
        schema = {"title": "Parameters", "type": "object", "properties": properties}
        return book.whole({**schema, "required": required} if required else schema)


def _annotated(fn: Any) -> Any:
    """What bears the annotations of a callable: a partial's function, a callable object's method."""
    for _ in range(100):  # partials and wrappers may be nested, hardly deeper
        inner = getattr(fn, "func", None) or getattr(fn, "__func__", None) or getattr(fn, "__wrapped__", None)
        if inner is None:
            break
        fn = inner
    return fn if isinstance(fn, (FunctionType, type)) else type(fn).__dict__.get("__call__", fn)

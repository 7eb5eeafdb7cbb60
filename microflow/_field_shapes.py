# SPDX-License-Identifier: Apache-2.0
"""The shapes of classes with fields: dataclasses, TypedDicts, NamedTuples, and models that validate by themselves.

An object of the class is passed on as it is; a mapping becomes one, with every field as its annotation wants it, no
unknown name and none missing. See ``_shapes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._scalars import shown
from ._shapes import MOST_PROBLEMS, Gathering, Refusal, Shape, refuse
from .exceptions import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._shapes import Problem, SchemaBook


class Field:
    """One field of a dataclass, a TypedDict, a NamedTuple or a RunInput."""

    __slots__ = ("default", "required", "shape")

    def __init__(self, shape: Shape, required: bool, default: Any = None) -> None:
        self.shape = shape
        self.required = required
        #: for the schema; None when there is none that JSON can say
        self.default = default


class FieldsShape(Shape):
    """Named fields: from a mapping, with no name unknown and none missing."""

    def __init__(self, title: str, make: Callable[[dict[str, Any]], Any], kind: type | None) -> None:
        self.title = title
        self.fields: dict[str, Field] = {}  # filled later, so that a field may be of this shape
        self.make = make
        #: an object of this class is passed on as it is; None for a TypedDict, which is a dict
        self.kind = kind

    def take(self, value: Any) -> Any:
        """The object, or one that is made from the mapping. What its ``__post_init__`` raises is a problem."""
        if self.kind is not None and isinstance(value, self.kind):
            return value
        if not isinstance(value, Mapping):
            raise refuse(f"must be a {self.title} or a dict with its fields, got {shown(value)}")
        fields = self.take_fields(value)
        try:
            return self.make(fields)
        except Exception as problem:  # the user's __init__ or __post_init__ may refuse in any way
            raise refuse(f"cannot become a {self.title}: {describe(problem)}") from problem

    def take_fields(self, value: Mapping[Any, Any]) -> dict[str, Any]:
        """The coerced fields that are given."""
        gathering, taken = Gathering(), {}
        for name, field in self.fields.items():
            if name in value:
                taken[name] = gathering.take(field.shape, value[name], name)
            elif field.required:
                gathering.add("is a required property, but is missing", name)
        for name in value:
            if name not in self.fields:
                known = ", ".join(self.fields) or "none"
                gathering.add(f"is no field of {self.title}; its fields are: {known}", shown_key(name))
        gathering.check()
        return taken

    def exact(self, value: Any) -> bool:
        """An object of the class; a dict when every field is exact."""
        if self.kind is not None:
            return isinstance(value, self.kind)
        return (
            type(value) is dict
            and value.keys() <= self.fields.keys()
            and all(
                field.shape.exact(value[name]) if name in value else not field.required
                for name, field in self.fields.items()
            )
        )

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """By reference."""
        return book.reference(self, self.title)

    def define(self, book: SchemaBook) -> dict[str, Any]:
        """An object with these properties and no others."""
        properties = {}
        for name, field in self.fields.items():
            properties[name] = {"title": name.replace("_", " ").title(), **field.shape.schema(book)}
            if not field.required and field.default is not None:
                properties[name]["default"] = field.default
        schema: dict[str, Any] = {"title": self.title, "type": "object", "properties": properties}
        required = [name for name, field in self.fields.items() if field.required]
        if required:
            schema["required"] = required
        return {**schema, "additionalProperties": False}

    @property
    def name(self) -> str:
        """The class's."""
        return self.title


def shown_key(key: Any) -> str:
    """A key as a piece of a place."""
    return key if isinstance(key, str) and len(key) <= 80 else shown(key)


class NamedTupleShape(FieldsShape):
    """A NamedTuple: an object of it, a tuple or list in the order of the fields, or a mapping."""

    def take(self, value: Any) -> Any:
        """Always a new one, its fields coerced."""
        if isinstance(value, (tuple, list)):
            names = list(self.fields)
            if len(value) > len(names):
                raise refuse(f"must have at most {len(names)} members, got {len(value)}")
            value = dict(zip(names, value, strict=False))
        if not isinstance(value, Mapping):
            raise refuse(f"must be a {self.title}, a tuple or a dict, got {shown(value)}")
        return self.make(self.take_fields(value))


# ------------------------------------------------------------------------------------------------- models


class ModelShape(Shape):
    """A class that validates by itself (``model_validate``, or ``parse_obj`` of old): a pydantic model, a RunInput."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def take(self, value: Any) -> Any:
        """An object of the class as it is; of a mapping, what the class makes of it."""
        if isinstance(value, self.kind):
            return value
        if not isinstance(value, Mapping):
            raise refuse(f"must be a {self.name} or a dict with its fields, got {shown(value)}")
        validate = getattr(self.kind, "model_validate", None) or self.kind.parse_obj
        try:
            return validate(dict(value))
        except Exception as problem:  # whatever the model raises says what is wrong
            raise Refusal(_problems_of(problem)) from problem

    def exact(self, value: Any) -> bool:
        """An object of the class."""
        return isinstance(value, self.kind)

    def schema(self, book: SchemaBook) -> dict[str, Any]:
        """By reference."""
        return book.reference(self, self.name)

    def define(self, book: SchemaBook) -> dict[str, Any]:
        """What the model says of itself; its own definitions move to the book."""
        describe_model = getattr(self.kind, "model_json_schema", None) or getattr(self.kind, "schema", None)
        try:
            schema = dict(describe_model()) if describe_model is not None else {"type": "object"}
        except Exception:  # a model that holds what JSON schema cannot say is an object all the same
            return {"title": self.name, "type": "object"}
        definitions: Any = schema.pop("$defs", None) or schema.pop("definitions", None) or {}
        for name, definition in definitions.items():
            book.definitions.setdefault(name, definition)
        return schema

    @property
    def name(self) -> str:
        """The class's."""
        return str(self.kind.__name__)


def _problems_of(error: Exception) -> list[Problem]:
    """The problems that a model's error lists, else its text."""
    errors = getattr(error, "errors", None)
    if callable(errors):
        try:
            listed = [(tuple(each["loc"]), str(each["msg"])) for each in errors()]
            if listed:
                return listed[:MOST_PROBLEMS]
        except (TypeError, KeyError):  # another meaning of the word
            pass
    return [((), describe(error))]

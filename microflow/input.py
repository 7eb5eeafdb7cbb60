# SPDX-License-Identifier: Apache-2.0
"""Typed input for flow runs: what a pause asks for, and inputs that are given under a key.

``pause_flow_run(wait_for_input=…)`` takes a :class:`RunInput` subclass, whose annotations say what is asked for::

    class Approval(RunInput):
        approved: bool
        reason: str = ""

or any other type, ``int``, ``list[str]``, a dataclass, an Enum, for which :func:`run_input_subclass_from_type` makes
one with the single field ``value``; a model that validates by itself gets a subclass of both. An answer is checked
twice: when it is given, against the JSON schema that stands with the pause, which is strict; and when the paused code
goes on, by the class, which coerces as parameters of flows do. What only the class can judge (``__post_init__``, a
model's validators) is raised in the paused code, which may ask again.

The functions for inputs under keys are plain calls in blocking code and give a coroutine in async code; the names
with an ``a`` in front are always coroutines.
"""

from __future__ import annotations

import copy
import types
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ._field_shapes import Field, FieldsShape
from ._plain_json import plain
from ._shapes import Refusal, SchemaBook
from ._waits import AsyncioWaits, BlockingWaits, dual, finish
from .client.inputs import (
    FlowRunInput,
    create_input,
    delete_input,
    filter_inputs,
    keyset_of,
    keyset_of_key,
    next_input,
    question_records,
    read_input,
    response_to,
)
from .client.objects import new_run_id
from .client.orchestration import current_client
from .coercion import Reader, is_model, own_annotations, schema_default, take
from .context import FlowRunContext
from .exceptions import ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

    from ._waits import Waits
    from .client.fold import Run
    from .states import State

__all__ = [
    "AutomaticRunInput",
    "FlowRunInput",
    "InputHandler",
    "RunInput",
    "RunInputMetadata",
    "acreate_flow_run_input",
    "acreate_flow_run_input_from_model",
    "adelete_flow_run_input",
    "afilter_flow_run_input",
    "aread_flow_run_input",
    "asend_input",
    "create_flow_run_input",
    "create_flow_run_input_from_model",
    "delete_flow_run_input",
    "filter_flow_run_input",
    "keyset_from_base_key",
    "keyset_from_paused_state",
    "read_flow_run_input",
    "receive_input",
    "run_input_subclass_from_type",
    "send_input",
]

R = TypeVar("R", bound="RunInput")
Keyset = dict[str, str]

_SENDER = "prefect.flow-run."  # how a run signs what it gives to another


class RunInputMetadata:
    """Where an input came from: its ``key``, the ``sender`` if it was signed, the ``receiver``'s run id."""

    __slots__ = ("key", "receiver", "sender")

    def __init__(self, key: str, sender: str | None = None, receiver: UUID | str | None = None) -> None:
        self.key = key
        self.sender = sender
        self.receiver = receiver

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunInputMetadata) and (self.key, self.sender, self.receiver) == (
            other.key,
            other.sender,
            other.receiver,
        )

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def __repr__(self) -> str:
        return f"RunInputMetadata(key={self.key!r}, sender={self.sender!r}, receiver={self.receiver!r})"


class RunInput:
    """What a person, or another program, gives to a flow run. Subclasses annotate their fields, with defaults as class
    attributes; an unknown field is refused, and so is a missing one without a default.

    Making one coerces the fields (ValidationError tells all that is wrong), then calls ``__post_init__``, if the class
    has one, which may raise what it likes. Defaults are not checked; each object gets a copy of its own.
    """

    _description: ClassVar[str | None] = None
    _shape: ClassVar[FieldsShape | None] = None
    if TYPE_CHECKING:  # no class has it: an attribute of a class hides what models keep in private

        _metadata: Any

    def __init__(self, **values: Any) -> None:
        try:
            taken = take_fields(type(self), values)
        except Refusal as refusal:
            raise ValidationError(f"{type(self).__name__} does not fit", refusal.problems) from None
        for name, field in shape_of(type(self)).fields.items():
            if name in taken:
                setattr(self, name, taken[name])
            elif not field.required:
                setattr(self, name, copy.deepcopy(getattr(type(self), name)))
        check = getattr(self, "__post_init__", None)
        if check is not None:
            check()

    # ------------------------------------------------------------- the names by which models are recognised

    model_fields: ClassVar[Any] = property(lambda self: shape_of(type(self)).fields)

    @classmethod
    def model_validate(cls: type[R], data: Mapping[str, Any]) -> R:
        """One made of the fields in a mapping."""
        if not all(isinstance(name, str) for name in data):
            raise ValidationError(f"{cls.__name__} does not fit", [((), "the names of fields are texts")])
        return cls(**data)

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """What :meth:`schema` gives."""
        book = SchemaBook()
        return book.whole(shape_of(cls).define(book))

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON schema of what is asked for."""
        return cls.model_json_schema()

    def model_dump(self) -> dict[str, Any]:
        """The fields and their values."""
        return {name: getattr(self, name) for name in shape_of(type(self)).fields}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.model_dump().items())
        return f"{type(self).__name__}({fields})"

    # ------------------------------------------------------------------------------------------ in runs

    @property
    def metadata(self) -> RunInputMetadata:
        """Where it came from. RuntimeError for one that was made here."""
        found: RunInputMetadata | None = getattr(self, "_metadata", None)
        if found is None:
            raise RuntimeError(f"this {type(self).__name__} was not received by a run, so it has no metadata")
        return found

    @classmethod
    def keyset_from_type(cls) -> Keyset:
        """The keys for inputs of this class outside of pauses."""
        return keyset_from_base_key(cls.__name__.lower())

    @classmethod
    def with_initial_data(cls: type[R], description: str | None = None, **values: Any) -> type[R]:
        """A subclass that asks for the same with these defaults, and a description for whoever answers. Types stay:
        what may be None can still be answered by None. TypeError for a field that it does not have."""
        fields = cls.model_fields if is_model_of_others(cls) else shape_of(cls).fields
        unknown = [name for name in values if name not in fields]
        if unknown:
            raise TypeError(f"{cls.__name__} has no field {', '.join(unknown)}; its fields are: {', '.join(fields)}")
        namespace: dict[str, Any] = {"_description": description, "_shape": None, "__module__": cls.__module__}
        if is_model_of_others(cls):  # to which a default without a type says nothing
            annotations = {name: annotation for base in reversed(cls.__mro__) for name, annotation in
                           own_annotations(base).items()}  # fmt: skip
            namespace["__annotations__"] = {name: annotations.get(name, Any) for name in values}
        made: type[R] = _subclass(cls.__name__, (cls,), {**namespace, **values})
        return made

    @classmethod
    def save(cls, keyset: Keyset, flow_run_id: UUID | str | None = None) -> None:
        """Store schema and description under the keys of `keyset`."""
        run_id, client = _run_id(flow_run_id), current_client()
        for record in question_records(keyset, cls.model_json_schema(), cls._description):
            create_input(client, run_id, record["key"], record["value"], None)

    @classmethod
    def load(cls, keyset: Keyset, flow_run_id: UUID | str | None = None) -> Any:
        """What was given as the response of `keyset`; one of defaults when nothing was. ValidationError when it does
        not fit."""
        run = current_client().fold(_run_id(flow_run_id))
        return loaded(cls, run, keyset)

    @classmethod
    def load_from_flow_run_input(cls, flow_run_input: FlowRunInput) -> Any:
        """One made of an input that was read."""
        made = cls.model_validate(flow_run_input.decoded_value)
        made._metadata = RunInputMetadata(flow_run_input.key, flow_run_input.sender, flow_run_input.flow_run_id)
        return made

    @classmethod
    def receive(
        cls,
        timeout: float | None = 3600,
        poll_interval: float = 10,
        raise_timeout_error: bool = False,
        exclude_keys: Iterable[str] | None = None,
        key_prefix: str | None = None,
        flow_run_id: UUID | str | None = None,
    ) -> InputHandler:
        """What is sent of this class to a run, as :func:`receive_input` gives it."""
        return InputHandler(cls, timeout, raise_timeout_error, exclude_keys, key_prefix, flow_run_id)

    def send_to(
        self,
        flow_run_id: UUID | str,
        sender: str | None = None,
        key_prefix: str | None = None,
        *,
        _sync: bool | None = None,
    ) -> Any:
        """Send this to a run, see :func:`send_input`."""
        return send_input(self, flow_run_id, sender, key_prefix, _sync=_sync)

    def respond(
        self, run_input: Any, sender: str | None = None, key_prefix: str | None = None, *, _sync: bool | None = None
    ) -> Any:
        """Send something to the run that sent this. RuntimeError when no run did."""
        signed = self.metadata.sender or ""
        if not signed.startswith(_SENDER):
            raise RuntimeError(f"Cannot respond: the sender is {self.metadata.sender!r}, which is no flow run")
        return send_input(run_input, signed[len(_SENDER) :], sender, key_prefix, _sync=_sync)

    @classmethod
    def subclass_from_base_model_type(cls, model: type) -> type[RunInput]:
        """A subclass of both a model that validates by itself and this, called ``<Model>RunInput``."""
        namespace: dict[str, Any] = {"__module__": model.__module__, "_metadata": None, "__doc__": model.__doc__}
        config = getattr(model, "model_config", None)
        if isinstance(config, dict):
            namespace["model_config"] = {**config, "extra": "forbid"}
        made: type[RunInput] = _subclass(f"{model.__name__}RunInput", (model, RunInput), namespace)
        return made


class AutomaticRunInput(RunInput):
    """Asks for a single ``value``; loading one gives the bare value."""

    if TYPE_CHECKING:
        value: Any

    @classmethod
    def load(cls, keyset: Keyset, flow_run_id: UUID | str | None = None) -> Any:
        """The value that was given."""
        return super().load(keyset, flow_run_id).value

    @classmethod
    def subclass_from_type(cls, value_type: Any) -> type[AutomaticRunInput]:
        """One whose value is of this type, and which is named after it."""
        namespace = {"__annotations__": {"value": value_type}, "__module__": __name__}
        made: type[AutomaticRunInput] = _subclass(_name_of(value_type), (cls,), namespace)
        return made


def _subclass(name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
    """A class made by the metaclass of its bases, which may be a model's."""
    return types.new_class(name, bases, {}, lambda given: given.update(namespace))


def _name_of(annotation: Any) -> str:
    name = getattr(annotation, "__name__", None) or getattr(annotation, "_name", None)
    return str(name or getattr(annotation, "__class__", type(annotation)).__name__).lower()


def is_model_of_others(kind: type[RunInput]) -> bool:
    """Whether a RunInput is a model that validates by itself too."""
    return kind.model_validate.__func__ is not RunInput.model_validate.__func__  # type: ignore[attr-defined]


def shape_of(kind: type[RunInput]) -> FieldsShape:
    """The fields of a RunInput and what they take."""
    found = kind.__dict__.get("_shape")
    if found is not None:
        shape: FieldsShape = found
        return shape
    reader = Reader()
    shape = FieldsShape(kind.__name__, lambda fields: kind(**fields), kind)
    given = {name for base in kind.__mro__[: kind.__mro__.index(RunInput)] for name in vars(base)}
    for name, (annotation, names) in reader.fields_of(kind).items():
        if name.startswith("_") or "ClassVar" in str(annotation):
            continue
        if hasattr(RunInput, name):
            raise TypeError(f"{kind.__name__} cannot have a field {name!r}: every RunInput has that itself")
        default = schema_default(getattr(kind, name)) if name in given else None
        shape.fields[name] = Field(reader.read(annotation, names), name not in given, default)
    if not reader.unresolved:
        kind._shape = shape
    return shape


def take_fields(kind: type[RunInput], values: dict[str, Any]) -> dict[str, Any]:
    """The values as the fields of `kind` want them."""
    shape = shape_of(kind)
    inner = FieldsShape(shape.title, lambda fields: fields, None)
    inner.fields = shape.fields
    taken: dict[str, Any] = take(inner, values)
    return taken


# ----------------------------------------------------------------------------------------------- in pauses


def run_input_subclass_from_type(wanted: Any) -> type[RunInput]:
    """The RunInput that asks for `wanted`: itself if it is one, one of both kinds for a model, else one with a single
    ``value``."""
    if isinstance(wanted, type) and issubclass(wanted, RunInput):
        return wanted
    if is_model(wanted):
        return RunInput.subclass_from_base_model_type(wanted)
    return AutomaticRunInput.subclass_from_type(wanted)


def keyset_from_base_key(base_key: str) -> Keyset:
    """``{"description": "<base>-description", "response": …, "schema": …}``."""
    return keyset_of_key(base_key)


def keyset_from_paused_state(state: State[Any]) -> Keyset:
    """The keys for the input of a pause, such as ``paused-1-schema``. RuntimeError for a state that is not paused."""
    if not state.is_paused():
        raise RuntimeError(f"state {state.type.value} is unsupported: only a paused one asks for input")
    return keyset_of_key(f"{state.name.lower()}-{state.state_details.pause_key}")


def question(kind: type[RunInput], state: State[Any]) -> list[dict[str, Any]]:
    """What goes into the line that records `state`, a pause that asks for `kind`; its keys go into the state."""
    keyset = state.state_details.run_input_keyset = keyset_from_paused_state(state)
    return question_records(keyset, kind.model_json_schema(), kind._description)


def answer(kind: type[RunInput], run: Run, state: State[Any]) -> Any:
    """What the pause `state` was answered, as the paused code gets it. ValidationError, or what the class raises, when
    the answer does not satisfy it."""
    return loaded(kind, run, keyset_of(state))


def loaded(kind: type[RunInput], run: Run, keyset: Keyset) -> Any:
    """The response of `keyset` as one of `kind`, the bare value for an automatic one."""
    made: Any = kind.model_validate(response_to(run, keyset) or {})
    made._metadata = RunInputMetadata(keyset["response"], None, run.flow_run.id)
    return made.value if isinstance(made, AutomaticRunInput) else made


# ------------------------------------------------------------------------------------------- between runs


class InputHandler:
    """What is sent to a run, one after the other, the oldest first: an iterator in both forms, which also has
    ``next()`` and ``anext()``. Each handler begins anew and gives each input once; it looks at once, then waits."""

    def __init__(
        self,
        kind: type[RunInput],
        timeout: float | None = 3600,
        raise_timeout_error: bool = False,
        exclude_keys: Iterable[str] | None = None,
        key_prefix: str | None = None,
        flow_run_id: UUID | str | None = None,
        with_metadata: bool = False,
    ) -> None:
        self.run_input = kind
        self.timeout = timeout
        self.raise_timeout_error = raise_timeout_error
        self.exclude_keys = set(exclude_keys or ())
        self.key_prefix = key_prefix or _prefix(kind)
        self.flow_run_id = _run_id(flow_run_id)
        self.with_metadata = with_metadata

    async def _next(self, waits: Waits) -> Any:
        found = await next_input(
            current_client(), self.flow_run_id, self.key_prefix, self.exclude_keys, waits, self.timeout
        )
        self.exclude_keys.add(found.key)  # also when it does not fit: it would be in the way of all others
        made = self.run_input.load_from_flow_run_input(found)
        return made.value if isinstance(made, AutomaticRunInput) and not self.with_metadata else made

    def next(self) -> Any:
        """The next input. TimeoutError when none comes in time, ValidationError for one that does not fit."""
        return finish(self._next(BlockingWaits()))

    async def anext(self) -> Any:
        """The coroutine form of :meth:`next`."""
        return await self._next(AsyncioWaits())

    def __iter__(self) -> InputHandler:
        return self

    def __next__(self) -> Any:
        try:
            return self.next()
        except TimeoutError:
            if self.raise_timeout_error:
                raise
        raise StopIteration

    def __aiter__(self) -> InputHandler:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.anext()
        except TimeoutError:
            if self.raise_timeout_error:
                raise
        raise StopAsyncIteration


def _prefix(kind: type[RunInput]) -> str:
    return f"{kind.__name__.lower()}-auto"


def receive_input(
    input_type: Any,
    timeout: float | None = 3600,
    poll_interval: float = 10,
    raise_timeout_error: bool = False,
    exclude_keys: Iterable[str] | None = None,
    key_prefix: str | None = None,
    flow_run_id: UUID | str | None = None,
    with_metadata: bool = False,
) -> InputHandler:
    """What is sent of a type to a run, the current one unless told. Iterating stops when nothing came for `timeout`
    seconds, or raises TimeoutError with `raise_timeout_error`. Of a type that is no class with fields the bare values
    are given, unless `with_metadata`. Inputs arrive by themselves: `poll_interval` is accepted and not needed."""
    kind = run_input_subclass_from_type(input_type)
    return InputHandler(kind, timeout, raise_timeout_error, exclude_keys, key_prefix, flow_run_id, with_metadata)


def send_input(
    run_input: Any,
    flow_run_id: UUID | str,
    sender: str | None = None,
    key_prefix: str | None = None,
    *,
    _sync: bool | None = None,
) -> Any:
    """Send a RunInput, a model, or any value that JSON can carry, to a run. It is received by those who ask for its
    class, or for the type of the value, under the same `key_prefix`. Signed by the current run unless `sender` is
    given."""
    kind = run_input_subclass_from_type(type(run_input))
    value = {"value": run_input} if issubclass(kind, AutomaticRunInput) else run_input
    key = f"{key_prefix or _prefix(kind)}-{new_run_id()}"
    return create_flow_run_input(key, plain(value, strict=True), flow_run_id, _own_sender(sender), _sync=_sync)


async def asend_input(
    run_input: Any, flow_run_id: UUID | str, sender: str | None = None, key_prefix: str | None = None
) -> None:
    """The coroutine form of :func:`send_input`."""
    send_input(run_input, flow_run_id, sender, key_prefix, _sync=True)


# ------------------------------------------------------------------------------------------ inputs under keys


def _run_id(flow_run_id: UUID | str | None) -> str:
    if flow_run_id is not None:
        return str(flow_run_id)
    context = FlowRunContext.get()
    if context is None:
        raise RuntimeError("You must either provide a flow run ID or be within a flow run")
    return str(context.flow_run.id)


def _own_sender(sender: str | None) -> str | None:
    context = FlowRunContext.get()
    return sender if sender is not None or context is None else f"{_SENDER}{context.flow_run.id}"


def create_flow_run_input(
    key: str,
    value: Any,
    flow_run_id: UUID | str | None = None,
    sender: str | None = None,
    *,
    _sync: bool | None = None,
) -> Any:
    """Give a run, the current one unless told, a value under a key. Plain JSON is kept of it (a date becomes its text);
    ValueError for what cannot be that, ObjectAlreadyExists when the key is taken, ObjectNotFound for an unknown run."""
    return dual(lambda: create_input(current_client(), _run_id(flow_run_id), key, value, sender), _sync)


async def acreate_flow_run_input(
    key: str, value: Any, flow_run_id: UUID | str | None = None, sender: str | None = None
) -> None:
    """The coroutine form of :func:`create_flow_run_input`."""
    create_flow_run_input(key, value, flow_run_id, sender, _sync=True)


def create_flow_run_input_from_model(
    key: str,
    model_instance: Any,
    flow_run_id: UUID | str | None = None,
    sender: str | None = None,
    *,
    _sync: bool | None = None,
) -> Any:
    """Give a run the fields of a RunInput or another model under a key, signed by the current run unless `sender` is
    given."""
    return create_flow_run_input(key, plain(model_instance, strict=True), flow_run_id, _own_sender(sender), _sync=_sync)


async def acreate_flow_run_input_from_model(
    key: str, model_instance: Any, flow_run_id: UUID | str | None = None, sender: str | None = None
) -> None:
    """The coroutine form of :func:`create_flow_run_input_from_model`."""
    create_flow_run_input_from_model(key, model_instance, flow_run_id, sender, _sync=True)


def read_flow_run_input(key: str, flow_run_id: UUID | str | None = None, *, _sync: bool | None = None) -> Any:
    """The value that a run, the current one unless told, has under a key; None when it has none."""

    def read() -> Any:
        found = read_input(current_client(), _run_id(flow_run_id), key)
        return None if found is None else found.decoded_value

    return dual(read, _sync)


async def aread_flow_run_input(key: str, flow_run_id: UUID | str | None = None) -> Any:
    """The coroutine form of :func:`read_flow_run_input`."""
    return read_flow_run_input(key, flow_run_id, _sync=True)


def filter_flow_run_input(
    key_prefix: str,
    limit: int | None = 1,
    exclude_keys: Iterable[str] | None = None,
    flow_run_id: UUID | str | None = None,
    *,
    _sync: bool | None = None,
) -> Any:
    """The inputs of a run whose key begins with `key_prefix`, the oldest first: :class:`FlowRunInput` objects, at most
    `limit` (None: all), without those of `exclude_keys`."""
    excluded = list(exclude_keys or ())
    return dual(lambda: filter_inputs(current_client(), _run_id(flow_run_id), key_prefix, limit, excluded), _sync)


async def afilter_flow_run_input(
    key_prefix: str,
    limit: int | None = 1,
    exclude_keys: Iterable[str] | None = None,
    flow_run_id: UUID | str | None = None,
) -> list[FlowRunInput]:
    """The coroutine form of :func:`filter_flow_run_input`."""
    found: list[FlowRunInput] = filter_flow_run_input(key_prefix, limit, exclude_keys, flow_run_id, _sync=True)
    return found


def delete_flow_run_input(key: str, flow_run_id: UUID | str | None = None, *, _sync: bool | None = None) -> Any:
    """Take an input away. ObjectNotFound when there is none under the key."""
    return dual(lambda: delete_input(current_client(), _run_id(flow_run_id), key), _sync)


async def adelete_flow_run_input(key: str, flow_run_id: UUID | str | None = None) -> None:
    """The coroutine form of :func:`delete_flow_run_input`."""
    delete_flow_run_input(key, flow_run_id, _sync=True)

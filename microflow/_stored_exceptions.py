# SPDX-License-Identifier: Apache-2.0
"""An exception as data, and the exception again.

What does not work: calling the class with the stored ``args``, as pickle does. An ``__init__`` that takes
something else than it hands to ``super().__init__`` then fails, or quietly makes another message
(``NotFound("x")`` comes back as ``no x no no x``).

The rule: no ``__init__`` of the user's is called. The nearest built-in base (``Exception``, ``OSError``, ...)
makes an object of the class from what it had been given itself, and the attributes are set after that. If
its text is then not the text of old, or anything fails, a :class:`RestoredError` takes its place, which
says type and message. Tracebacks and the chain of causes are kept as text.

Known hole: attributes in ``__slots__`` are lost.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ._modules import class_name
from .exceptions import MicroflowException, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TRACEBACK = 32 * 1024  # characters
MAX_CAUSES = 20


class RestoredError(MicroflowException):
    """Stands for an exception whose class is not here, or does not come back as it was."""

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


class OriginalTraceback(MicroflowException):
    """The ``__cause__`` of an exception that was stored: shows where it had come from."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def text_of(error: BaseException) -> str:
    """``str(error)``, also when that fails."""
    try:
        return str(error)
    except Exception:  # the user's own __str__
        return f"<the text of this {type(error).__name__} cannot be read>"


def same_text(one: BaseException, text: str) -> bool:
    """Whether an exception has this text. Addresses of objects in it do not count: they are never the same."""
    mine = text_of(one)
    return mine == text or re.sub(_ADDRESS, "", mine) == re.sub(_ADDRESS, "", text)


_ADDRESS = "0x[0-9a-fA-F]+"


def describe(error: BaseException, write: Callable[[Any, str], Any], *, strict: bool) -> dict[str, Any]:
    """An exception as a JSON object. ``write(value, step)`` turns a part of it into JSON; `step` is its path.

    Members: ``type`` (``module:qualname``), ``message``, ``args`` and ``attributes`` (what the built-in base
    needs to make it again), ``notes``, ``causes`` (one line each), ``traceback`` (text, with the causes').
    Absent is what is empty. When a part cannot be written, `strict` passes the error on; otherwise the part
    is left out.
    """
    kind = type(error)
    described: dict[str, Any] = {"type": class_name(kind), "message": text_of(error)}
    args, attributes = _parts(error)
    notes = attributes.pop("__notes__", None)
    try:
        described["args"] = [write(member, f".args[{place}]") for place, member in enumerate(args)]
    except SerializationError:
        if strict:
            raise
    written = {}
    for name, value in attributes.items():
        try:
            written[name] = write(value, f".{name}")
        except SerializationError:
            if strict:
                raise
    described["attributes"] = written
    described["notes"] = [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []
    described["causes"] = _causes(error)
    described["traceback"] = _traceback(error)
    return {name: value for name, value in described.items() if value or name in ("message", "args")}


def _builtin_base(kind: type[BaseException]) -> Any:
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")


def _parts(error: BaseException) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the built-in base was given, and the attributes. OSError keeps its file name apart from ``args``."""
    try:
        _, args, *state = _builtin_base(type(error)).__reduce__(error)
    except Exception:  # a class that overrides `args`
        return (), {}
    return args, dict(state[0]) if state and isinstance(state[0], dict) else {}


def _causes(error: BaseException) -> list[str]:
    causes: list[str] = []
    seen = {id(error)}
    while len(causes) < MAX_CAUSES:
        hidden = error.__suppress_context__
        cause = error.__cause__ if error.__cause__ is not None or hidden else error.__context__
        if cause is None or id(cause) in seen:
            break
        seen.add(id(cause))
        causes.append(f"{type(cause).__qualname__}: {text_of(cause)}"[:1000])
        error = cause
    return causes


def _traceback(error: BaseException) -> str:
    if error.__traceback__ is None and error.__cause__ is None:
        return ""
    if isinstance(error.__cause__, OriginalTraceback) and error.__traceback__ is None:
        return str(error.__cause__.args[0])  # it was stored before and handed on
    import traceback  # costs 5 ms: only when something has failed

    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:  # it reads source files and the user's attributes
        return ""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= MAX_TRACEBACK:
        return text
    return f"{text[: MAX_TRACEBACK // 4]}\n[...]\n{text[-MAX_TRACEBACK * 3 // 4 :]}"


def restore(described: dict[str, Any], resolve: Callable[[str, str], Any], read: Callable[[Any], Any]) -> BaseException:
    """The exception that was described, or a :class:`RestoredError` for it. Its traceback, if it had one, is
    the ``__cause__``. SerializationError only when the description itself is damaged."""
    try:
        path, message = described["type"], described["message"]
        qualname = path.partition(":")[2] or path
    except (KeyError, TypeError, AttributeError) as problem:
        raise SerializationError(f"the description of an exception is damaged: {problem!r}") from problem
    error = None
    if "args" in described:
        try:
            error = _rebuild(described, resolve, read)
        except Exception:  # whatever the class does when it is made or read, the caller gets an exception
            error = None
    if error is None or not same_text(error, message):
        error = RestoredError(str(qualname), str(message))
    if described.get("notes"):
        error.__notes__ = list(described["notes"])  # type: ignore[attr-defined,unused-ignore]  # 3.11
    if described.get("traceback"):
        error.__cause__ = OriginalTraceback(described["traceback"])
    return error


def _rebuild(
    described: dict[str, Any], resolve: Callable[[str, str], Any], read: Callable[[Any], Any]
) -> BaseException | None:
    module, _, qualname = described["type"].partition(":")
    kind = resolve(module, qualname)
    if not isinstance(kind, type) or not issubclass(kind, BaseException):
        return None
    base = _builtin_base(kind)
    args = [read(member) for member in described["args"]]
    error: BaseException = base.__new__(kind, *args)
    base.__init__(error, *args)
    for name, value in described.get("attributes", {}).items():
        if hasattr(base, name):
            object.__setattr__(error, name, read(value))  # a field in C, as `name` of an ImportError
        else:
            error.__dict__[name] = read(value)
    return error

# SPDX-License-Identifier: Apache-2.0
"""What ``@task`` and ``@flow`` have in common: a function with a name, hooks, and a binding to an object.

Everything that follows from the function alone is computed here, once, when it is decorated, so that a call
does not compute it again.
"""

from __future__ import annotations

import copy
import sys
from functools import cached_property
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeVar

from ._arguments import Parameters, check_reserved
from ._digests import blake2b

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

    from .states import StateType

D = TypeVar("D", bound="Definition")
H = TypeVar("H", bound="Callable[..., Any]")

_COROUTINE, _ASYNC_GENERATOR, _GENERATOR = 0x80, 0x200, 0x20  # flags of code objects, see the inspect module


class Definition:
    """A user's function and what is known of it. Bound copies share everything but the object they are bound to."""

    hook_types: dict[str, StateType] = {}  # noqa: RUF012 - overridden by subclasses, never changed

    def __init__(self, fn: Callable[..., Any], options: Mapping[str, Any], known: Container[str]) -> None:
        unknown = [option for option in options if option not in known]
        if unknown:
            kind = type(self).__name__.lower()
            raise TypeError(f"a {kind} has no option {', '.join(map(repr, sorted(unknown)))}")
        self._given = dict(options)
        self.isclassmethod = isinstance(fn, classmethod)
        self.isstaticmethod = isinstance(fn, staticmethod)
        if isinstance(fn, (classmethod, staticmethod)):
            fn = fn.__func__
        if not callable(fn):
            raise TypeError(f"'fn' must be callable, got {fn!r}")
        self.fn = fn
        self.name = str(options.get("name") or getattr(fn, "__name__", type(fn).__name__))
        self.version: str | None = options.get("version")
        self.description: str | None = options.get("description") or _clean(getattr(fn, "__doc__", None))
        for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
            if hasattr(fn, attribute):
                setattr(self, attribute, getattr(fn, attribute))
        self.__wrapped__ = fn
        code = _code_of(fn)
        flags = code.co_flags if code is not None else 0
        self.isasync = bool(flags & (_COROUTINE | _ASYNC_GENERATOR))
        self.isgenerator = bool(flags & (_GENERATOR | _ASYNC_GENERATOR))
        self.parameters = Parameters(fn)
        check_reserved(self.parameters.names)
        self.hooks: dict[StateType, list[Callable[..., Any]]] = {}
        self._code = code
        self._bound: tuple[Any, ...] = ()

    # ----------------------------------------------------------------------------------------- the function

    @property
    def qualified_name(self) -> str:
        """The function's qualified name, without its module: a script is imported under two names."""
        return str(getattr(self.fn, "__qualname__", None) or f"{type(self.fn).__module__}.{type(self.fn).__name__}")

    def code_digest(self) -> str:
        """Eight hexadecimal digits that follow from the code; "unknown" for callables without code."""
        if self._code is None:
            return "unknown"
        digest = blake2b(digest_size=4)
        _feed(digest, self._code)
        return digest.hexdigest()

    @cached_property
    def source_digest(self) -> str:
        """What tells an edited function from the recorded one; bytecode differs between Python versions."""
        return f"py{sys.version_info[0]}.{sys.version_info[1]}-{self.code_digest()}"

    # ------------------------------------------------------------------------------------------- methods

    @property
    def ismethod(self) -> bool:
        """Whether this is bound to an object or class."""
        return bool(self._bound)

    @property
    def bound_names(self) -> tuple[str, ...]:
        """The names of the parameters that the binding fills (``self`` or ``cls``)."""
        return tuple(self.parameters.names[: len(self._bound)])

    def __get__(self: D, instance: Any, owner: type | None = None) -> D:
        """Bind to the object or class that this was fetched from. The binding is the copy's own: two bound
        copies never mix up, and fetching through the class gives the function itself."""
        if self.isstaticmethod:
            return self
        if self.isclassmethod:
            return self._bound_to(owner if owner is not None else type(instance))
        return self if instance is None else self._bound_to(instance)

    def _bound_to(self: D, instance: Any) -> D:
        twin = copy.copy(self)
        twin._bound = (instance,)
        return twin

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, apply_defaults: bool = True) -> dict[str, Any]:
        """The parameters of a call as one dict; ParameterBindError when they do not fit."""
        return self.parameters.bind((*self._bound, *args) if self._bound else args, kwargs, apply_defaults)

    def rebind(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """The parameters of a call from those that were recorded for it, which leave out what the binding fills
        and stand as :meth:`bind` made them. SignatureMismatchError when the function does not take them."""
        given = {**self.parameters.defaults, **recorded, **dict(zip(self.parameters.names, self._bound, strict=False))}
        self.parameters.call_arguments(given)
        return {name: given[name] for name in self.parameters.names if name in given}

    def _twin(self: D, replaced: dict[str, Any]) -> D:
        """One over the same function, bound to the same object, with some options replaced; hooks that were added
        by decoration go along, in lists of its own."""
        names = {kind: option for option, kind in self.hook_types.items()}
        hooks = {names[kind]: list(hooks) for kind, hooks in self.hooks.items()}
        kind: Any = type(self)
        twin: D = kind(self.fn, **{**self._given, **hooks, **replaced})
        twin._bound = self._bound
        twin.isclassmethod, twin.isstaticmethod = self.isclassmethod, self.isstaticmethod
        return twin

    # --------------------------------------------------------------------------------------------- hooks

    def _set_hooks(self, option: str, hooks: Iterable[Callable[..., Any]] | None) -> None:
        listed = self._listed_hooks(option, hooks)
        if listed:
            self.hooks[self.hook_types[option]] = listed

    def _listed_hooks(self, option: str, hooks: Iterable[Callable[..., Any]] | None) -> list[Callable[..., Any]]:
        """The hooks of one option, checked, in a list of this object's own."""
        if hooks is None:
            return []
        try:
            listed = list(hooks)
        except TypeError:
            raise TypeError(
                f"Expected iterable for '{option}'; got {type(hooks).__name__} instead. "
                f"Please provide a list of hooks to '{option}':\n\n{option}=[hook1, hook2]"
            ) from None
        for hook in listed:
            if not callable(hook):
                raise TypeError(f"Expected callables in '{option}'; got {type(hook).__name__} instead.")
        return listed

    def _hook(self, option: str, fn: H) -> H:
        self.hooks.setdefault(self.hook_types[option], []).extend(self._listed_hooks(option, [fn]))
        return fn

    def on_completion(self, fn: H) -> H:
        """Decorate a function to be called with this object, the run and its state after a run completed."""
        return self._hook("on_completion", fn)

    def on_failure(self, fn: H) -> H:
        """Decorate a function to be called likewise after a run failed for good."""
        return self._hook("on_failure", fn)

    def on_running(self, fn: H) -> H:
        """Decorate a function to be called likewise each time a run enters RUNNING."""
        return self._hook("on_running", fn)

    def hooks_for(self, state_type: StateType) -> list[Callable[..., Any]]:
        """The hooks to run when a run enters a state of this type."""
        return self.hooks.get(state_type, [])

    # ----------------------------------------------------------------------------------------- run names

    def render_run_name(self, parameters: dict[str, Any]) -> str | None:
        """The run's own name from its template or callable; None when the generated one is to stay."""
        template = self._run_name_option()
        if template is None:
            return None
        if isinstance(template, str):
            return template.format(**parameters)
        if not callable(template):
            raise TypeError(self._expected_name(template))
        takes_parameters = "parameters" in Parameters(template).names
        name = template(parameters=parameters) if takes_parameters else template()
        if not isinstance(name, str):
            raise TypeError(
                f"the callable {getattr(template, '__name__', template)!r} for the name of a run of {self.name!r} "
                f"returned {type(name).__name__}; it must return a string"
            )
        return name

    def _run_name_option(self) -> Any:
        raise TypeError(f"{type(self).__name__} has no option for the names of its runs")

    def _check_run_name(self, template: Any) -> None:
        if template is not None and not isinstance(template, str) and not callable(template):
            raise TypeError(self._expected_name(template))

    def _expected_name(self, template: Any) -> str:
        kind = type(self).__name__.lower()
        return f"Expected string or callable for '{kind}_run_name'; got {type(template).__name__} instead."


def hook_name(hook: Any) -> str:
    """What a hook is called in a log line: its function's name, a partial's function's, or its class's."""
    function = getattr(hook, "func", hook)
    return str(getattr(function, "__name__", None) or type(hook).__name__)


def _clean(text: str | None) -> str | None:
    """A docstring without its common indentation (PEP 257)."""
    if not text:
        return None
    first, *rest = text.expandtabs().splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in rest if line.strip()), default=0)
    return "\n".join([first.strip(), *(line[margin:].rstrip() for line in rest)]).strip()


def _code_of(fn: Any) -> CodeType | None:
    seen = 0
    while seen < 100:  # partials and wrappers may be nested, hardly deeper
        seen += 1
        if hasattr(fn, "func"):
            fn = fn.func
        elif hasattr(fn, "__func__"):
            fn = fn.__func__
        elif not hasattr(fn, "__code__") and not isinstance(fn, type) and hasattr(type(fn).__call__, "__code__"):
            fn = type(fn).__call__
        else:
            break
    code = getattr(fn, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _feed(digest: Any, code: CodeType) -> None:
    digest.update(code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _feed(digest, constant)
        elif isinstance(constant, frozenset):
            digest.update(repr(sorted(map(repr, constant))).encode())
        else:
            digest.update(repr(constant).encode())
    digest.update(repr((code.co_names, code.co_varnames)).encode())

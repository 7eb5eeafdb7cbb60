# SPDX-License-Identifier: Apache-2.0
"""Arguments: how they are bound, annotated, searched, rebuilt and mapped.

:class:`Parameters` binds a call to a dict of parameters and makes the call from it again;
:func:`expand_mapping` makes the parameters of each child of ``map``. The annotations, :func:`find` and
:func:`visit_collection` come from ``_containers`` and are used from here.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from ._containers import (
    BaseAnnotation,
    NotSet,
    StopVisiting,
    allow_failure,
    contains_special,
    find,
    freeze,
    is_iterable,
    opaque,
    quote,
    unmapped,
    visit_collection,
)
from .exceptions import (
    MappingLengthMismatch,
    MappingMissingIterable,
    ParameterBindError,
    ReservedArgumentError,
    SignatureMismatchError,
)

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "BaseAnnotation",
    "NotSet",
    "Parameters",
    "StopVisiting",
    "allow_failure",
    "check_reserved",
    "contains_special",
    "expand_mapping",
    "find",
    "freeze",
    "is_iterable",
    "opaque",
    "quote",
    "read_wait_for",
    "unmapped",
    "visit_collection",
]

# ------------------------------------------------------------------------------------------------- binding

RESERVED = frozenset({"wait_for", "return_state"})


def read_wait_for(wait_for: Any) -> Any:
    """`wait_for` as it stands at the call: the members of whatever can be iterated, also of what can be only once, such
    as a generator; anything else, a future or an annotation alone, as it is."""
    if wait_for is None or isinstance(wait_for, (BaseAnnotation, dict)) or not is_iterable(wait_for):
        return wait_for
    return list(wait_for)


def check_reserved(names: Iterable[str]) -> None:
    """ReservedArgumentError when a function has a parameter that calls of flows and tasks need themselves."""
    for name in names:
        if name in RESERVED:
            raise ReservedArgumentError(f"{name!r} is a reserved argument name: give the parameter another one")


class Parameters:
    """What a function takes, read once.

    ``names`` are all parameters in the order of the signature. ``positional_only``, ``positional`` (those
    included) and ``keyword_only`` tell their kinds; ``var_positional`` and ``var_keyword`` are the names of
    ``*args`` and ``**kwargs``, or None. ``defaults`` has the parameters that may be left out.

    A plain function is read from its code object. Everything else (wrapped functions, methods, partials,
    callable objects) needs ``inspect``, which costs 11 ms to load; so do errors.
    """

    __slots__ = (
        "_quick",
        "_signature",
        "defaults",
        "fn",
        "keyword_only",
        "name",
        "names",
        "positional",
        "positional_only",
        "var_keyword",
        "var_positional",
    )

    positional_only: tuple[str, ...]
    positional: tuple[str, ...]
    keyword_only: tuple[str, ...]
    var_positional: str | None
    var_keyword: str | None

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.name: str = getattr(fn, "__name__", type(fn).__name__)
        self._signature: inspect.Signature | None = None
        self.defaults: dict[str, Any] = {}
        if type(fn) is FunctionType and not {"__wrapped__", "__signature__"} & fn.__dict__.keys():
            self._read_code(fn)
        else:
            self._read_signature(fn)
        names = (*self.positional, self.var_positional, *self.keyword_only, self.var_keyword)
        self._quick = not self.positional_only and names.count(None) == 2
        self.names: tuple[str, ...] = tuple(name for name in names if name is not None)

    def _read_code(self, fn: Any) -> None:
        code = fn.__code__
        taken, words = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
        self.positional = code.co_varnames[:taken]
        self.positional_only = code.co_varnames[: code.co_posonlyargcount]
        self.keyword_only = code.co_varnames[taken:words]
        rest = iter(code.co_varnames[words:])
        self.var_positional = next(rest) if code.co_flags & 0x04 else None  # inspect.CO_VARARGS
        self.var_keyword = next(rest) if code.co_flags & 0x08 else None  # inspect.CO_VARKEYWORDS
        values = fn.__defaults__ or ()
        self.defaults.update(zip(self.positional[taken - len(values) :], values, strict=True))
        self.defaults.update(fn.__kwdefaults__ or {})

    def _read_signature(self, fn: Callable[..., Any]) -> None:
        import inspect  # 11 ms: only for what is no plain function

        try:
            parameters = list(_signature_of(fn).parameters.values())
        except ValueError:  # a function in C that does not say what it takes
            parameters = [
                inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
                inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
            ]
        by_kind: dict[Any, list[str]] = {}
        for parameter in parameters:
            by_kind.setdefault(parameter.kind, []).append(parameter.name)
            if parameter.default is not parameter.empty:
                self.defaults[parameter.name] = parameter.default
        kinds = inspect.Parameter
        self.positional_only = tuple(by_kind.get(kinds.POSITIONAL_ONLY, ()))
        self.positional = (*self.positional_only, *by_kind.get(kinds.POSITIONAL_OR_KEYWORD, ()))
        self.keyword_only = tuple(by_kind.get(kinds.KEYWORD_ONLY, ()))
        self.var_positional = next(iter(by_kind.get(kinds.VAR_POSITIONAL, ())), None)
        self.var_keyword = next(iter(by_kind.get(kinds.VAR_KEYWORD, ())), None)

    def bind(self, args: Iterable[Any], kwargs: Mapping[str, Any], apply_defaults: bool = True) -> dict[str, Any]:
        """The parameters of the call ``fn(*args, **kwargs)``, in the order of the signature.

        ``*args`` stand under their name as a tuple, ``**kwargs`` under theirs as a dict.
        ParameterBindError (a TypeError) when the function cannot be called so.
        """
        args = tuple(args)
        given = len(args)
        if self._quick and given <= len(self.positional):
            names = self.names
            bound = dict(zip(names, args))  # noqa: B905  # the rest follows
            if given == len(names) and not kwargs:
                return bound
            used = 0
            defaults = self.defaults
            for name in names[given:]:
                if name in kwargs:
                    bound[name] = kwargs[name]
                    used += 1
                elif name not in defaults:
                    break
                elif apply_defaults:
                    bound[name] = defaults[name]
            else:
                if used == len(kwargs):
                    return bound
        return self._bind_any(args, kwargs, apply_defaults)

    def _bind_any(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], apply_defaults: bool) -> dict[str, Any]:
        """Not by ``inspect``: before 3.13 that refuses ``f(x=1)`` for ``def f(x=0, /, **kwargs)``."""
        bound: dict[str, Any] = {}
        rest = dict(kwargs)
        first_by_word = len(self.positional_only)
        fits = True
        value: Any
        for place, name in enumerate(self.names):
            if name == self.var_positional:
                value, given = args[place:], len(args) > place or apply_defaults
            elif name == self.var_keyword:
                value, given, rest = rest, bool(rest) or apply_defaults, {}
            elif place < len(args) and place < len(self.positional):
                value, given = args[place], True
                fits = fits and (place < first_by_word or name not in rest)
            elif place >= first_by_word and name in rest:
                value, given = rest.pop(name), True
            else:
                value, given = self.defaults.get(name), apply_defaults
                fits = fits and name in self.defaults
            if given:
                bound[name] = value
        if fits and not rest and (len(args) <= len(self.positional) or self.var_positional is not None):
            return bound
        raise self._refusal(args, kwargs)

    def _refusal(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ParameterBindError:
        """The error, in the words of ``inspect``."""
        problem = TypeError("the arguments do not fit")
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            problem = error
        return ParameterBindError.from_bind_failure(self.name, problem, args, dict(kwargs), self.signature)

    @property
    def signature(self) -> inspect.Signature:
        """The same as an ``inspect.Signature``, without the annotations (reading them may fail)."""
        if self._signature is None:
            import inspect  # 11 ms: only for errors

            kinds = inspect.Parameter
            by_name: dict[str | None, Any] = {
                **dict.fromkeys(self.positional, kinds.POSITIONAL_OR_KEYWORD),
                **dict.fromkeys(self.positional_only, kinds.POSITIONAL_ONLY),
                **dict.fromkeys(self.keyword_only, kinds.KEYWORD_ONLY),
                self.var_positional: kinds.VAR_POSITIONAL,
                self.var_keyword: kinds.VAR_KEYWORD,
            }
            self._signature = inspect.Signature(
                [kinds(name, by_name[name], default=self.defaults.get(name, kinds.empty)) for name in self.names]
            )
        return self._signature

    def call_arguments(self, parameters: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(args, kwargs)`` that call the function with these parameters; defaults fill what is missing.

        SignatureMismatchError for names that it does not have, or when one that it needs is missing;
        TypeError when ``**kwargs`` holds a parameter that has a name of its own.
        """
        if self._quick and tuple(parameters) == self.names:  # as bind() made them: the rule
            values, count = tuple(parameters.values()), len(self.positional)
            return values[:count], dict(
                zip(self.keyword_only, values[count:], strict=True)
            ) if self.keyword_only else {}
        defaults, variadic = self.defaults, (self.var_positional, self.var_keyword)
        if not parameters.keys() <= set(self.names) or any(
            name not in parameters and name not in defaults and name not in variadic for name in self.names
        ):
            raise SignatureMismatchError.from_names(self.name, self.names, list(parameters))
        args = [parameters[name] if name in parameters else defaults[name] for name in self.positional]
        kwargs = {name: parameters[name] for name in self.keyword_only if name in parameters}
        if self.var_positional is not None:
            args.extend(parameters.get(self.var_positional, ()))
        extra = parameters.get(self.var_keyword) if self.var_keyword is not None else None
        if extra:
            twice = sorted(extra.keys() & set(self.positional[len(self.positional_only) :] + self.keyword_only))
            if twice:
                raise TypeError(f"{self.name}() got multiple values for {', '.join(map(repr, twice))}")
            kwargs.update(extra)
        return tuple(args), kwargs

    def explode_variadic(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters with the members of ``**kwargs`` beside the others; unchanged without ``**kwargs``.

        TypeError when a member has the name of a parameter: one of the two would be lost.
        """
        if self.var_keyword is None or self.var_keyword not in parameters:
            return parameters
        lifted = dict(parameters)
        extra = lifted.pop(self.var_keyword)
        twice = sorted(extra.keys() & set(self.names))
        if twice:
            raise TypeError(f"**{self.var_keyword} of {self.name}() holds the parameter names {', '.join(twice)}")
        return {**lifted, **extra}

    def children(self, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """The parameters of each child of ``map``, complete, from those that were bound without defaults; see
        :func:`expand_mapping`. Defaults are never mapped."""
        expanded = expand_mapping(self.explode_variadic(parameters), self.var_positional)
        return [self.collapse_variadic({**self.defaults, **child}) for child in expanded]

    def collapse_variadic(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The reverse: what the signature does not name goes under the name of ``**kwargs``.

        ValueError when the function takes no ``**kwargs``.
        """
        foreign = {name: value for name, value in parameters.items() if name not in self.names}
        if not foreign:
            return parameters
        if self.var_keyword is None:
            raise ValueError(f"{self.name}() does not take {', '.join(foreign)}: it takes {', '.join(self.names)}")
        named = {name: value for name, value in parameters.items() if name not in foreign}
        return {**named, self.var_keyword: {**named.get(self.var_keyword, {}), **foreign}}


def _signature_of(fn: Callable[..., Any]) -> inspect.Signature:
    import inspect  # 11 ms: only for what is no plain function

    try:
        import annotationlib  # type: ignore[import-not-found,unused-ignore]  # 3.14: do not evaluate annotations
    except ImportError:
        return inspect.signature(fn)
    options: dict[str, Any] = {"annotation_format": annotationlib.Format.FORWARDREF}
    return inspect.signature(fn, **options)


# ------------------------------------------------------------------------------------------------- mapping


class _Mapped:
    """One value per child."""

    __slots__ = ("values",)

    def __init__(self, values: list[Any]) -> None:
        self.values = values


def _classify(value: Any) -> Any:
    """:class:`_Mapped` for what is mapped over, else the value that every child gets.

    ``unmapped`` is taken off. Other annotations are put around each value again, however deep they stand.
    """
    annotations: list[BaseAnnotation[Any]] = []
    while isinstance(value, BaseAnnotation) and not isinstance(value, unmapped):
        annotations.append(value)
        value = value.unwrap()

    def annotated(value: Any) -> Any:
        for annotation in reversed(annotations):
            value = annotation.rewrap(value)
        return value

    if isinstance(value, unmapped):
        return annotated(value.unwrap())
    if is_iterable(value):
        return _Mapped([annotated(member) for member in value])
    return annotated(value)


def expand_mapping(parameters: Mapping[str, Any], var_positional: str | None = None) -> list[dict[str, Any]]:
    """The parameters of each child of ``map``: one for each position of the iterables among `parameters`.

    Everything iterable is mapped over, but for str, bytes, files and what ``unmapped`` holds; a dict by its
    keys; a generator is used up, so an endless one never returns. The rest goes to every child. Bind without
    defaults before and lift ``**kwargs``: what stands here is what the caller wrote. With `var_positional`, the
    name of ``*args``, each of its members is mapped by itself: ``f.map([1, 2], [3, 4])`` calls ``f(1, 3)`` and
    ``f(2, 4)``; without, the tuple is one iterable like any other.

    MappingMissingIterable when nothing is iterable, MappingLengthMismatch when the lengths differ. No
    children when all are empty.
    """
    columns: dict[str, Any] = {}
    spread: list[Any] = []
    for name, value in parameters.items():
        if name == var_positional:
            spread = [_classify(member) for member in value]
        else:
            columns[name] = _classify(value)
    labelled = {**columns, **{f"{var_positional}[{place}]": column for place, column in enumerate(spread)}}
    lengths = {name: len(column.values) for name, column in labelled.items() if isinstance(column, _Mapped)}
    if not lengths:
        given = ", ".join(labelled) or "no parameters"
        raise MappingMissingIterable(
            f"map needs at least one iterable parameter, but was given {given}: str, bytes and unmapped(...) "
            f"do not count. A single future is no iterable either; pass its result."
        )
    if len(set(lengths.values())) > 1:
        raise MappingLengthMismatch(
            f"map needs iterables of one length, but the lengths are {lengths}. "
            f"Wrap what every child should get whole in unmapped(...)."
        )

    def child(place: int) -> dict[str, Any]:
        def pick(column: Any) -> Any:
            return column.values[place] if isinstance(column, _Mapped) else column

        return {
            name: tuple(map(pick, spread)) if name == var_positional else pick(columns[name]) for name in parameters
        }

    return [child(place) for place in range(next(iter(lengths.values())))]

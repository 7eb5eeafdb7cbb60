# SPDX-License-Identifier: Apache-2.0
"""JSON that every reader understands in the same way, or refuses in the same way.

The state log is a chain: whether a line counts must follow from its bytes, and from nothing else. So what
:func:`encode` writes, :func:`decode` takes, in every process; and what depends on the version of Python, on
its settings or on the depth of the caller's stack is pinned down here:

* ASCII between 0x20 and 0x7E only. ``json`` leaves DEL (0x7F) as it is; here it is escaped.
* No NaN and no Infinity, which are not JSON.
* No name twice in one object. ``json`` would write ``{1: …, "1": …}`` so; hence names must be text.
* At most 100 levels. ``json`` raises RecursionError sooner or later, depending on who calls.
* Integers of any length. ``int()`` refuses more than 4,300 digits, or what PYTHONINTMAXSTRDIGITS says.
"""

from __future__ import annotations

import re
from json import JSONDecoder, JSONEncoder
from typing import Any

MAXIMUM_DEPTH = 100

# No look for circles: _check_names ends in a RecursionError at one before this is called.
_to_text = JSONEncoder(ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":")).encode


def encode(value: Any, *, depth: int = MAXIMUM_DEPTH) -> str:
    """A dict or list as JSON of at most `depth` levels. TypeError, ValueError or RecursionError if that cannot be."""
    _check_names(value)
    text = _to_text(value)
    if _is_too_deep(text, depth):
        raise ValueError(f"nested more than {depth} deep")
    return text.replace("\x7f", "\\u007f") if "\x7f" in text else text


_SCALARS = frozenset({str, int, float, bool, type(None)})


def _check_names(value: Any) -> None:
    """TypeError if a dict anywhere in this dict, list or tuple has names that are no text."""
    if isinstance(value, dict):
        "".join(value)  # the quickest look at all names: a call that takes nothing but text
        value = value.values()
    if not _SCALARS.issuperset(map(type, value)):
        for member in value:
            if isinstance(member, (dict, list, tuple)):
                _check_names(member)


_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")


def _is_too_deep(text: str, depth: int = MAXIMUM_DEPTH) -> bool:
    if text.count("[") + text.count("{") <= depth:
        return False
    brackets = _NO_BRACKETS.sub("", _STRINGS.sub("", text)).replace("{", "[").replace("}", "]")
    for _ in range(depth):
        brackets = brackets.replace("[]", "")  # takes the innermost level away
    return bool(brackets)


def decode(text: str) -> Any:
    """The value that a JSON text stands for; ValueError if it breaks a rule above.

    A RecursionError can only mean that the caller's stack is nearly full; it says nothing about the text.
    """
    if not text.isprintable() or _is_too_deep(text):
        raise ValueError("bytes outside of 0x20 to 0x7E, or nested too deep")
    try:
        value, end = _from_text(text)
    except ValueError:
        value, end = _from_text_with_long_integers(text)
    if end != len(text):
        raise ValueError("something follows the value")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _long_integer(digits: str) -> int:
    value, negative = 0, digits.startswith("-")
    digits = digits.lstrip("-")
    for start in range(0, len(digits), 600):  # the limit on int() cannot be set below 640 digits
        part = digits[start : start + 600]
        value = value * 10 ** len(part) + int(part)
    return -value if negative else value


_from_text = JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant).raw_decode
_from_text_with_long_integers = JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_long_integer
).raw_decode

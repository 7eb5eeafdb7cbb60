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
from json import encoder as json_encoder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAXIMUM_DEPTH = 100


def make_encoder(plain: JSONEncoder) -> Callable[[Any], str]:
    """What `plain`, which does not indent or look for circles, does with a dict, list or tuple; in two thirds of the
    time.

    ``JSONEncoder.encode`` makes its encoder, written in C, anew for each value. Here that encoder is made once, if this
    Python has it in the form that we know.
    """
    try:
        make: Any = json_encoder.c_make_encoder  # type: ignore[attr-defined]
        rules = plain.sort_keys, plain.skipkeys, plain.allow_nan
        chunks = make(None, plain.default, json_encoder.encode_basestring_ascii, None, ":", ",", *rules)
        if "".join(chunks([{"a": 1}], 0)) == '[{"a":1}]':
            return lambda value: "".join(chunks(value, 0))
    except (AttributeError, TypeError):
        pass
    return plain.encode


# not check_circular: _check_shape finds a circle, as it is deeper than anything
_to_text = make_encoder(JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":")))


def encode(value: Any, *, depth: int = MAXIMUM_DEPTH) -> str:
    """A dict, list or tuple as JSON of at most `depth` levels. TypeError or ValueError if that cannot be."""
    _check_shape(value, depth)
    text = _to_text(value)
    return text.replace("\x7f", "\\u007f") if "\x7f" in text else text


_SCALARS = frozenset({str, int, float, bool, type(None)})


def _check_shape(value: Any, depth: int) -> None:
    """TypeError if a dict in this dict, list or tuple has names that are no text; ValueError if it is too deep."""
    if not depth:
        raise ValueError(f"nested more than {MAXIMUM_DEPTH} deep")
    if isinstance(value, dict):
        "".join(value)  # the quickest look at all names: a call that takes nothing but text
        value = value.values()
    for member in value:
        if type(member) not in _SCALARS and isinstance(member, (dict, list, tuple)) and member:
            _check_shape(member, depth - 1)


_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")


def _is_too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAXIMUM_DEPTH:
        return False
    brackets = _NO_BRACKETS.sub("", _STRINGS.sub("", text)).replace("{", "[").replace("}", "]")
    for _ in range(MAXIMUM_DEPTH):
        brackets = brackets.replace("[]", "")  # takes the innermost level away
    return bool(brackets)


def decode(text: str) -> Any:
    """The value that a JSON text stands for; ValueError if it breaks a rule above.

    A RecursionError can only mean that the caller's stack is nearly full; it says nothing about the text.
    """
    # json itself takes no control characters but these four: DEL in strings, the others between values
    if not text.isascii() or "\x7f" in text or "\t" in text or "\r" in text or "\n" in text:
        raise ValueError("bytes outside of 0x20 to 0x7E")
    if _is_too_deep(text):
        raise ValueError(f"nested more than {MAXIMUM_DEPTH} deep")
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


#: of an integer that somebody writes: as many as ``int()`` takes at once
MOST_DIGITS = 4300


def parse(text: str) -> Any:
    """The value of a JSON text that a person or another program wrote, in any Unicode and with any white space.

    ValueError for what readers understand in different ways, or not at all: a name that stands twice in one object,
    NaN, a number like 1e999 that is none of Python's, an integer of more than :data:`MOST_DIGITS` digits, more than
    100 levels."""
    if _is_too_deep(text):
        raise ValueError(f"nested more than {MAXIMUM_DEPTH} deep")
    value, end = _from_people(text.strip())
    if end != len(text.strip()):
        raise ValueError("something follows the value")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:40]} is too large for a number")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer has {len(digits)} digits, more than {MOST_DIGITS}")
    return _long_integer(digits)


_from_people = JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer
).raw_decode
_from_text = JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant).raw_decode
_from_text_with_long_integers = JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_long_integer
).raw_decode

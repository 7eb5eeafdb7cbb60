# SPDX-License-Identifier: Apache-2.0
"""One value as another type: what ``"5"`` is as an int, what ``"2026-01-31"`` is as a date.

:data:`SCALARS` is the table: a type, what a value must be, the function that makes it one, and its JSON schema. A
function gives back the very object if it fits already, else what it stands for, and raises :class:`Unfit` where a
value stands for nothing or would lose something (5.5 as an int). Values come from the command line and from
inputs too, so nothing here may take long: text is cut at :data:`LONGEST_NUMBER` before it becomes a number,
since ``int()`` of a million digits, or of ``Decimal("1e999999999")``, takes minutes.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable

#: more digits than that Python's own ``int()`` refuses, in the versions that have a limit
LONGEST_NUMBER = 4300

_MILLISECONDS = 2e10  # a moment in seconds that is greater counts as milliseconds


class Unfit(ValueError):
    """A value does not stand for one of the wanted type. The text says what is wanted, and what was given."""


def shown(value: object) -> str:
    """A value in an error: its text, cut, and its type."""
    try:
        text = repr(value)
    except Exception:  # a __repr__ of the user's, or an int of more digits than Python shows
        return f"a {type(value).__name__}"
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return text if value is None else f"{text} ({type(value).__name__})"


def unfit(wanted: str, value: object) -> Unfit:
    """The error for a value that is not what is `wanted`."""
    return Unfit(f"must be {wanted}, got {shown(value)}")


def _plain(value: Any) -> Any:
    """An Enum member's value, a text of bytes; anything else as it is."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value


def _is_decimal(value: object) -> bool:
    return type(value).__name__ == "Decimal" and hasattr(value, "adjusted")  # without loading the module


# ------------------------------------------------------------------------------------------------- numbers

_INTEGER = re.compile(r"[+-]?[0-9](?:_?[0-9])*(?:\.0+)?", re.ASCII)


def to_int(value: Any) -> int:
    """5, True, 5.0, ``" 5 "``, ``"5.0"``, ``"1_000"``; not 5.5, ``"0x10"`` or ``""``."""
    given = value
    if type(value) is int:
        return value
    value = _plain(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        if len(text) > LONGEST_NUMBER:
            raise Unfit(f"must be an integer of at most {LONGEST_NUMBER} digits, got a text of {len(text)} characters")
        if _INTEGER.fullmatch(text):
            return int(text.partition(".")[0])
    elif isinstance(value, float):
        if value.is_integer():
            return int(value)
    elif _is_decimal(value) and value.is_finite() and value.adjusted() <= LONGEST_NUMBER and value == int(value):
        return int(value)
    raise unfit("an integer", given)


def to_float(value: Any) -> float:
    """5.5, 5, True, ``"1e3"``, ``"nan"``."""
    given = value
    if type(value) is float:
        return value
    value = _plain(value)
    if isinstance(value, (int, float, str)) or _is_decimal(value):
        try:
            return float(value) if not isinstance(value, str) or len(value) <= LONGEST_NUMBER else float("")
        except (ValueError, OverflowError):
            pass
    raise unfit("a number", given)


def to_decimal(value: Any) -> Any:
    """A finite Decimal from an int, a text, or a float by what it prints as."""
    from decimal import Decimal, InvalidOperation  # 2 ms, and loaded already by whoever asks for one

    if isinstance(value, Decimal):
        return value
    given, value = value, _plain(value)
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        text = str(value) if isinstance(value, float) else value
        if not isinstance(text, str) or len(text) <= LONGEST_NUMBER:
            try:
                made = Decimal(text.strip() if isinstance(text, str) else text)
            except InvalidOperation:
                made = Decimal("nan")
            if made.is_finite():
                return made
    raise unfit("a decimal number", given)


_TRUE = frozenset({"true", "yes", "on", "t", "y", "1"})
_FALSE = frozenset({"false", "no", "off", "f", "n", "0"})


def to_bool(value: Any) -> bool:
    """True, 1, 1.0 and yes, on, t … in any case, and their opposites."""
    if isinstance(value, bool):
        return value
    plain = _plain(value)
    if isinstance(plain, str):
        text = plain.lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
    elif isinstance(plain, (int, float)) and plain in (0, 1):
        return bool(plain)
    raise unfit("true or false", value)


# ---------------------------------------------------------------------------------------------------- text


def to_str(value: Any) -> str:
    """A text, the text that UTF-8 bytes hold, or that an Enum member stands for. No number becomes a text."""
    if isinstance(value, str) and not isinstance(value, Enum):
        return value
    plain = _plain(value)
    if isinstance(plain, str):
        return plain
    raise unfit("a text", value)


def to_bytes(value: Any) -> bytes:
    """Bytes, or a text as UTF-8."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            pass
    raise unfit("bytes", value)


def to_bytearray(value: Any) -> bytearray:
    """Likewise, as a bytearray."""
    return value if isinstance(value, bytearray) else bytearray(to_bytes(value))


def to_uuid(value: Any) -> UUID:
    """A UUID, its text with or without dashes, or its 16 bytes."""
    if isinstance(value, UUID):
        return value
    try:
        if isinstance(value, str):
            return UUID(value)
        if isinstance(value, bytes) and len(value) == 16:
            return UUID(bytes=value)
    except ValueError:
        pass
    raise unfit("a UUID", value)


# ------------------------------------------------------------------------------------------------- moments

_DAY = r"(\d{4})-(\d{2})-(\d{2})"
_CLOCK = r"(\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?"
_ZONE = r"(?:([Zz])|([+-])(\d{2}):?(\d{2})?)?"
_DATE = re.compile(_DAY, re.ASCII)
_TIME = re.compile(_CLOCK + _ZONE, re.ASCII)
_MOMENT = re.compile(rf"{_DAY}[Tt _]{_CLOCK}{_ZONE}", re.ASCII)
_ISO_SPAN = re.compile(
    r"([+-])?P(?:(\d+(?:\.\d+)?)W)?(?:(\d+(?:\.\d+)?)D)?"
    r"(?:T(?:(\d+(?:\.\d+)?)H)?(?:(\d+(?:\.\d+)?)M)?(?:(\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)
_CLOCK_SPAN = re.compile(r"([+-])?(?:(\d+) ?(?:d|days?),? ?)?(\d{1,4}):(\d{2})(?::(\d{2}(?:\.\d{1,9})?))?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _clock(parts: tuple[str | None, ...]) -> dict[str, Any]:
    """The members of a time from what the patterns found."""
    hour, minute, second, fraction, zulu, sign, zone_hours, zone_minutes = parts
    zone: timezone | None = None
    if zulu:
        zone = timezone.utc
    elif sign:
        offset = timedelta(hours=int(zone_hours or 0), minutes=int(zone_minutes or 0))
        zone = timezone(-offset if sign == "-" else offset)
    micro = int((fraction or "0")[:6].ljust(6, "0"))
    return {
        "hour": int(hour or 0), "minute": int(minute or 0), "second": int(second or 0),
        "microsecond": micro, "tzinfo": zone,
    }  # fmt: skip


def _number(value: Any) -> float | None:
    """The number that stands for a moment or a span, also as a text; never a bool."""
    if isinstance(value, bool) or not (isinstance(value, (int, float, str)) or _is_decimal(value)):
        return None
    try:
        return float(value) if not isinstance(value, str) or len(value) < 40 else None
    except (ValueError, OverflowError):
        return None


def _read_moment(value: Any) -> datetime | None:
    if isinstance(value, str):
        found = _MOMENT.fullmatch(value.strip())
        if found:
            year, month, day, *rest = found.groups()
            return datetime(int(year), int(month), int(day), **_clock(tuple(rest)))
        found = _DATE.fullmatch(value.strip())
        if found:
            return datetime(*map(int, found.groups()))  # type: ignore[arg-type]  # three numbers
    seconds = _number(value)
    if seconds is None:
        return None
    return _EPOCH + timedelta(seconds=seconds / 1000 if abs(seconds) > _MILLISECONDS else seconds)


def to_datetime(value: Any) -> datetime:
    """A datetime, a date (its midnight), ISO 8601 text, or seconds since 1970 (milliseconds when above 2e10) in UTC."""
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    try:
        moment = _read_moment(value)
    except (ValueError, OverflowError):  # month 13, year 99999
        moment = None
    if moment is None:
        raise unfit("a date and time such as 2026-01-31T12:00:00Z", value)
    return moment


def to_date(value: Any) -> date:
    """A date, or whatever is a date and time that is exactly midnight."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        moment = to_datetime(value)
    except Unfit:
        raise unfit("a date such as 2026-01-31", value) from None
    if moment.time() != time():
        raise unfit("a date without a time", value)
    return moment.date()


def to_time(value: Any) -> time:
    """A time, ``HH:MM[:SS]`` with or without an offset, or seconds since midnight."""
    if isinstance(value, time):
        return value
    try:
        found = _TIME.fullmatch(value.strip()) if isinstance(value, str) else None
        if found:
            return time(**_clock(found.groups()))
        seconds = _number(value)
        if seconds is not None and 0 <= seconds < 86400:
            return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).time()
    except (ValueError, OverflowError):
        pass
    raise unfit("a time such as 12:30:00", value)


def to_timedelta(value: Any) -> timedelta:
    """A timedelta, seconds, an ISO 8601 duration (``P1DT2H``), or ``[D days,] HH:MM[:SS]``."""
    if isinstance(value, timedelta):
        return value
    try:
        seconds = _number(value)
        if seconds is not None:
            return timedelta(seconds=seconds)
        text = value.strip() if isinstance(value, str) and len(value) < 100 else ""
        found = _ISO_SPAN.fullmatch(text)
        if found and any(found.groups()[1:]):
            weeks, days, hours, minutes, rest = (float(part or 0) for part in found.groups()[1:])
        else:
            found = _CLOCK_SPAN.fullmatch(text)
            days, hours, minutes, rest = (float(part or 0) for part in found.groups()[1:]) if found else (0, 0, 0, 0)
            weeks = 0
        if found:
            span = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=rest)
            return -span if found.group(1) == "-" else span
    except (ValueError, OverflowError):
        pass
    raise unfit("a duration in seconds, or such as P1DT2H or 02:00:00", value)


# ----------------------------------------------------------------------------------------------- the table


class Scalar(NamedTuple):
    """One row of the table."""

    convert: Callable[[Any], Any]
    schema: dict[str, Any]


SCALARS: dict[type, Scalar] = {
    int: Scalar(to_int, {"type": "integer"}),
    float: Scalar(to_float, {"type": "number"}),
    str: Scalar(to_str, {"type": "string"}),
    bool: Scalar(to_bool, {"type": "boolean"}),
    bytes: Scalar(to_bytes, {"type": "string", "format": "binary"}),
    bytearray: Scalar(to_bytearray, {"type": "string", "format": "binary"}),
    datetime: Scalar(to_datetime, {"type": "string", "format": "date-time"}),
    date: Scalar(to_date, {"type": "string", "format": "date"}),
    time: Scalar(to_time, {"type": "string", "format": "time"}),
    timedelta: Scalar(to_timedelta, {"type": "string", "format": "duration"}),
    UUID: Scalar(to_uuid, {"type": "string", "format": "uuid"}),
}

DECIMAL = Scalar(to_decimal, {"anyOf": [{"type": "number"}, {"type": "string"}]})


def scalar_of(kind: type) -> Scalar | None:
    """The row of a type; that of Decimal and of the kinds of paths is found without loading their modules."""
    found = SCALARS.get(kind)
    if found is None and (kind.__module__, kind.__name__) in (("decimal", "Decimal"), ("_pydecimal", "Decimal")):
        return DECIMAL
    if found is None and any(base.__module__[:7] == "pathlib" and base.__name__ == "PurePath" for base in kind.__mro__):
        return Scalar(_path_maker(kind), {"type": "string", "format": "path"})
    return found


def _path_maker(kind: Any) -> Callable[[Any], Any]:
    def to_path(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        if isinstance(value, str):
            return kind(value)
        raise unfit("a path", value)

    return to_path

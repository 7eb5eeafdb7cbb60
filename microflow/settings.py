# SPDX-License-Identifier: Apache-2.0
"""The settings, read from ``MICROFLOW_*``, and where the home is.

There is one :class:`Settings` object at a time: the one of the innermost :func:`temporary_settings`, else
the one that the environment describes now. A program may change ``os.environ`` while it runs: the next
call of :func:`current_settings` sees it. That call stands on the path of every run, so it compares the
raw values with those of the last reading and parses only what is new.

:func:`resolve_home` asks the operating system directly, not through ``_files``: this module stands on the
lowest floor, beside it.
"""

from __future__ import annotations

import math
import os
import stat
import sys
import warnings
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

MEMORY = ":memory:"
"""The home that is no folder: runs live and end with the process."""


# --------------------------------------------------------------------------------- what a value may be
# Each reads the text of a variable or the object that a program gave; ValueError when it is neither.


def _home(value: object) -> str | None:
    """A folder, made absolute; ``:memory:``; nothing for the default places."""
    if value is None or value == "":
        return None
    if value == MEMORY:
        return MEMORY
    if isinstance(value, (str, os.PathLike)) and "\0" not in (path := os.fspath(value)):
        return os.path.abspath(os.path.expanduser(path))
    raise ValueError


def _durability(value: object) -> str:
    text = value.lower() if isinstance(value, str) else value
    if text not in ("process", "disk"):
        raise ValueError
    return str(text)


_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _boolean(value: object) -> bool:
    if isinstance(value, str):
        value = _BOOLEANS.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError
    return value


def _maybe(value: object) -> bool | None:
    """Nothing given is a third answer."""
    return None if value is None or value == "" else _boolean(value)


def _count(value: object) -> int:
    number = int(value) if isinstance(value, str) else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError
    return number


def _seconds(value: object) -> float:
    number = float(value) if isinstance(value, str) else value
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 <= number < math.inf:
        raise ValueError
    return float(number)


def _workers(value: object) -> int:
    """At least one; the default is bounded, because a container may see every CPU of its host."""
    if value is None or value == "":
        cpus = getattr(os, "process_cpu_count", os.cpu_count)()  # 3.13 counts what this process may use
        return min(32, (cpus or 1) + 4)
    number = _count(value)
    if number == 0:
        raise ValueError
    return number


def _folder(value: object) -> str | None:
    """A folder, made absolute; nothing for the default place."""
    path = _home(value)
    if path == MEMORY:
        raise ValueError
    return path


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _processes(value: object) -> int:
    """At least one; as many as there are processors unless given."""
    if value is None or value == "":
        return getattr(os, "process_cpu_count", os.cpu_count)() or 1
    return _workers(value)


class _Field:
    """One setting: its variable, how its value is read, what is accepted, and its default."""

    __slots__ = ("accepted", "default", "read", "variable")

    def __init__(self, variable: str, read: Callable[[object], Any], accepted: str, default: object) -> None:
        self.variable = variable
        self.read = read
        self.accepted = accepted
        self.default = default


def _store(value: object) -> str | None:
    """The class or function that makes a store; nothing for the stores of microflow."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and all(part and ":" not in part for part in value.partition(":")[::2]):
        return value
    raise ValueError


_BOOLEAN = "true or false (also 1/0, yes/no, on/off)"
_COUNT = "a whole number from 0"
_SECONDS = "a number of seconds from 0"

FIELDS: dict[str, _Field] = {
    "home": _Field("MICROFLOW_HOME", _home, f"the path of a folder, or {MEMORY}", None),
    "store": _Field("MICROFLOW_STORE", _store, "module:name of what makes a store", None),
    "durability": _Field("MICROFLOW_DURABILITY", _durability, "process or disk", "process"),
    "keep_results": _Field("MICROFLOW_KEEP_RESULTS", _boolean, _BOOLEAN, True),
    "default_task_retries": _Field("MICROFLOW_TASKS_DEFAULT_RETRIES", _count, _COUNT, 0),
    "default_task_retry_delay_seconds": _Field("MICROFLOW_TASKS_DEFAULT_RETRY_DELAY_SECONDS", _seconds, _SECONDS, 0.0),
    "default_task_persist_result": _Field("MICROFLOW_TASKS_DEFAULT_PERSIST_RESULT", _maybe, _BOOLEAN, None),
    "default_task_no_cache": _Field("MICROFLOW_TASKS_DEFAULT_NO_CACHE", _boolean, _BOOLEAN, False),
    "task_refresh_cache": _Field("MICROFLOW_TASKS_REFRESH_CACHE", _boolean, _BOOLEAN, False),
    "task_disable_caching": _Field("MICROFLOW_TASKS_DISABLE_CACHING", _boolean, _BOOLEAN, False),
    "persist_results_by_default": _Field("MICROFLOW_RESULTS_PERSIST_BY_DEFAULT", _boolean, _BOOLEAN, False),
    "log_prints": _Field("MICROFLOW_LOGGING_LOG_PRINTS", _boolean, _BOOLEAN, False),
    "default_flow_retries": _Field("MICROFLOW_FLOWS_DEFAULT_RETRIES", _count, _COUNT, 0),
    "default_flow_retry_delay_seconds": _Field("MICROFLOW_FLOWS_DEFAULT_RETRY_DELAY_SECONDS", _seconds, _SECONDS, 0.0),
    "default_serializer": _Field("MICROFLOW_RESULTS_DEFAULT_SERIALIZER", _text, "the name of a serializer", "auto"),
    "local_storage_path": _Field("MICROFLOW_RESULTS_LOCAL_STORAGE_PATH", _folder, "the path of a folder", None),
    "thread_pool_max_workers": _Field(
        "MICROFLOW_TASKS_RUNNER_THREAD_POOL_MAX_WORKERS", _workers, "a whole number from 1", None
    ),
    "process_pool_max_workers": _Field(
        "MICROFLOW_TASKS_RUNNER_PROCESS_POOL_MAX_WORKERS", _processes, "a whole number from 1", None
    ),
}
"""Every setting by its attribute name."""


class Settings:
    """What a program is set to. Read-only by convention; :func:`temporary_settings` changes it.

    ``home`` is an absolute path, ``":memory:"``, or None when none was given (:func:`resolve_home` then
    looks for one). Delays are in seconds. ``thread_pool_max_workers`` is never None here.
    """

    __slots__ = (
        "default_flow_retries",
        "default_flow_retry_delay_seconds",
        "default_serializer",
        "default_task_no_cache",
        "default_task_persist_result",
        "default_task_retries",
        "default_task_retry_delay_seconds",
        "durability",
        "home",
        "keep_results",
        "local_storage_path",
        "log_prints",
        "persist_results_by_default",
        "process_pool_max_workers",
        "store",
        "task_disable_caching",
        "task_refresh_cache",
        "thread_pool_max_workers",
    )

    home: str | None
    store: str | None
    durability: str
    keep_results: bool
    default_task_retries: int
    default_task_retry_delay_seconds: float
    default_task_persist_result: bool | None
    default_task_no_cache: bool
    task_refresh_cache: bool
    task_disable_caching: bool
    persist_results_by_default: bool
    log_prints: bool
    default_flow_retries: int
    default_flow_retry_delay_seconds: float
    default_serializer: str
    local_storage_path: str | None
    thread_pool_max_workers: int
    process_pool_max_workers: int

    def __init__(self, **values: object) -> None:
        """Settings with these values, given as objects or as text; the rest has its default."""
        unknown = values.keys() - FIELDS.keys()
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ConfigurationError(f"there is no setting {names}; the settings are {', '.join(FIELDS)}")
        for name, field in FIELDS.items():
            value = values.get(name, field.default)
            try:
                setattr(self, name, field.read(value))
            except (ValueError, TypeError, OverflowError):
                raise ConfigurationError(f"setting {name} is {value!r}; accepted is {field.accepted}") from None

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings that the environment describes. A variable that is set but empty counts as not set."""
        values = {}
        for name, field in FIELDS.items():
            text = os.environ.get(field.variable, "").strip()
            if not text:
                continue
            try:
                values[name] = field.read(text)
            except (ValueError, OverflowError):
                raise ConfigurationError(f"{field.variable} is {text!r}; accepted is {field.accepted}") from None
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The values by name: plain JSON, to be given to ``Settings(**values)`` in another process."""
        return {name: getattr(self, name) for name in FIELDS}

    def __eq__(self, other: object) -> bool:
        return self.as_dict() == other.as_dict() if isinstance(other, Settings) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.as_dict().items()))

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"


# -------------------------------------------------------------------------------- the settings that hold now

_VARIABLES = [field.variable for field in FIELDS.values()]
_override: ContextVar[Settings | None] = ContextVar("microflow_settings", default=None)
# what the environment held at the last reading, and what it meant: one tuple, so that threads see both or neither
_last: tuple[tuple[object, ...], Settings] | None = None


def _raw_values() -> tuple[object, ...]:
    # os.environ encodes and decodes each name and value (9 µs for these); the dict behind it does not (0.6 µs).
    # It is not public, so a Python without it takes the long way.
    data = getattr(os.environ, "_data", None)
    if data is None:
        return tuple(map(os.environ.get, _VARIABLES))
    return tuple(map(data.get, _KEYS))


_KEYS = [getattr(os.environ, "encodekey", str)(name) for name in _VARIABLES]


def current_settings() -> Settings:
    """The settings that hold here and now. ConfigurationError when a variable holds what cannot be read."""
    global _last
    override = _override.get()
    if override is not None:
        return override
    raw = _raw_values()
    last = _last
    if last is not None and last[0] == raw:
        return last[1]
    settings = Settings.from_environment()
    _last = (raw, settings)
    return settings


class temporary_settings:
    """``with temporary_settings(durability="disk"):`` the settings that hold now, but for those named.

    They hold for the code of the block in this context: this thread, or this asyncio task and those that
    it starts. A thread that is started in the block does not see them unless it runs in a copy of the
    context. An unknown name or a value that does not fit raises ConfigurationError.
    """

    __slots__ = ("_settings", "_tokens")

    def __init__(self, **overrides: object) -> None:
        self._settings = Settings(**{**current_settings().as_dict(), **overrides})
        self._tokens: list[Any] = []

    def __enter__(self) -> Settings:
        self._tokens.append(_override.set(self._settings))
        return self._settings

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _override.reset(self._tokens.pop())


# ------------------------------------------------------------------------------------------------- the home

_warned = False  # the fallback is announced once in a process


def resolve_home() -> str:
    """The folder that holds the runs, made if need be and writable; or ``":memory:"``.

    A home that was given is taken or refused: ConfigurationError, never another place. Without one it is
    ``~/.microflow``; where that cannot be written, ``microflow-<uid>`` under the temporary folder, with one
    warning per process. That folder must be ours alone (mode 0700, no link): others can write beside it.
    """
    home = current_settings().home
    if home == MEMORY:
        return MEMORY
    if home is not None:
        return _given_home(home)
    parent = os.path.expanduser("~")
    if os.path.isabs(parent):  # "~" itself is what comes back when there is no home
        home = os.path.join(parent, ".microflow")
        if _make(home) is None:
            return home
    return _fallback_home(home or "~/.microflow")


def readable_home() -> str | None:
    """The home, where it is a folder that can be read but not written: enough to look at what is there; else None."""
    home = current_settings().home or os.path.join(os.path.expanduser("~"), ".microflow")
    if home == MEMORY or not os.path.isabs(home) or not os.path.isdir(home) or os.access(home, os.W_OK):
        return None
    return home if os.access(home, os.R_OK | os.X_OK) else None


def _make(path: str) -> str | None:
    """Make the folder (not its parents) unless it is there; why it cannot be used, or None."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        return error.strerror or str(error)
    if not os.path.isdir(path):
        return "it is not a folder"
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return "it cannot be written"
    return None


def _given_home(home: str) -> str:
    try:
        os.makedirs(os.path.dirname(home), exist_ok=True)
    except OSError as error:
        problem: str | None = f"{error.filename}: {error.strerror}"
    else:
        problem = _make(home)
    if problem is not None:
        raise ConfigurationError(
            f"the home {home} cannot be used: {problem}. Set MICROFLOW_HOME to a folder that can be written, "
            f"or to {MEMORY} to keep runs in memory only."
        )
    return home


def _fallback_home(wanted: str) -> str:
    global _warned
    import tempfile  # costs 3 ms and is needed only here

    cure = f"Set MICROFLOW_HOME to a folder that can be written, or to {MEMORY} to keep runs in memory only."
    try:
        parent = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ConfigurationError(f"neither {wanted} nor any temporary folder can be written. {cure}") from error
    user = os.getuid() if sys.platform != "win32" else 0
    home = os.path.join(os.path.abspath(parent), f"microflow-{user}")
    problem = _make(home) or _not_private(home, user)
    if problem is not None:
        raise ConfigurationError(f"{wanted} cannot be written, and {home} must not be used: {problem}. {cure}")
    if not _warned:
        _warned = True  # before the warning, which may be an error
        message = f"{wanted} cannot be written: runs are kept in {home}, which may not outlive a reboot. {cure}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return home


def _not_private(path: str, user: int) -> str | None:
    """Why a folder among everybody's folders is not ours alone, or None."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        return "it is a link"
    if sys.platform == "win32":
        return None  # the temporary folder is the user's own there
    if status.st_uid != user:
        return f"it belongs to user {status.st_uid}"
    if stat.S_IMODE(status.st_mode) & 0o077:
        return f"others may use it (mode {stat.S_IMODE(status.st_mode):04o}; 0700 is asked for)"
    return None

# SPDX-License-Identifier: Apache-2.0
"""Log records as data: what an attempt logs in a worker process is logged again by the owner of its run.

One handler at the root of a worker process serves all attempts there. Which attempt a record belongs to is a context
variable, since a worker may run several in threads; what is logged in a thread that the task started itself
belongs to the only attempt there is, if there is only one. A record that belongs to none is left alone.

The owner's logging configuration decides: its levels go along with each call, its handlers get the records. They
keep when and where they were logged, and the ids of the run that run loggers give them.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ._forks import new_lock
from .exceptions import SerializationError
from .serializers import from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Sink = Callable[[dict[str, Any]], None]

_SINK: ContextVar[Sink | None] = ContextVar("microflow_log_sink", default=None)
# guards the two below: the sinks of the attempts that run now, and the levels that were set last
_lock = new_lock()
_sinks: list[Sink] = []
_levels: dict[str, int] = {}
#: in a fork: the handlers that its parent had
_inherited: list[tuple[logging.Logger, logging.Handler]] = []

#: the members of a record that go along as they are
_PLAIN = (
    *("name", "levelno", "levelname", "created", "msecs", "relativeCreated", "pathname", "filename", "module"),
    *("lineno", "funcName", "thread", "threadName", "process", "processName", "taskName", "exc_text", "stack_info"),
)
_OWN = frozenset({*_PLAIN, "msg", "args", "exc_info", "message", "asctime"})


def levels() -> dict[str, int]:
    """The level of each logger that was given one, the root's under "", for a worker to set."""
    given = {"": logging.root.level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and (logger.level or logger.disabled):
            given[name] = logging.CRITICAL + 1 if logger.disabled else logger.level
    return given


def record_as_data(record: logging.LogRecord) -> dict[str, Any]:
    """A record as plain JSON, its message put together and its traceback as text."""
    data = {name: getattr(record, name, None) for name in _PLAIN}
    try:
        data["msg"] = record.getMessage()
    except Exception as problem:  # arguments that do not fit the message: logging reports that, and goes on
        data["msg"] = f"{record.msg} (its arguments do not fit: {problem})"
    if record.exc_info and not data["exc_text"]:
        data["exc_text"] = logging.Formatter().formatException(record.exc_info)
    extra = {}
    for name, value in record.__dict__.items():
        if name not in _OWN:
            try:
                extra[name] = to_json(value)
            except SerializationError:
                extra[name] = to_json(repr(value))
    data["extra"] = extra
    return data


def log_again(data: dict[str, Any]) -> None:
    """Hand a record that was logged elsewhere to the handlers of this process."""
    logger = logging.getLogger(data["name"] if data["name"] != "root" else None)
    if not logger.isEnabledFor(data["levelno"]):
        return
    fields = {name: data[name] for name in _PLAIN if name in data}
    fields.update({name: from_json(value) for name, value in data["extra"].items()})
    logger.handle(logging.makeLogRecord({**fields, "msg": data["msg"], "args": None, "exc_info": None}))


class _Handler(logging.Handler):
    """Gives each record to the sink of the attempt that logged it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging, in the thread that logs."""
        sink = _SINK.get()
        if sink is None and len(_sinks) == 1:
            (sink,) = _sinks
        if sink is not None:
            try:
                sink(record_as_data(record))
            except Exception:  # to log must not fail a task (I7)
                self.handleError(record)


_handler = _Handler()


def _after_fork_in_child() -> None:
    _sinks.clear()  # of attempts in the parent's threads
    known = (logging.root, *logging.root.manager.loggerDict.values())
    loggers = [each for each in known if isinstance(each, logging.Logger)]
    _inherited[:] = [(logger, handler) for logger in loggers for handler in logger.handlers]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def forget_inherited_handlers() -> None:
    """Take away the handlers that a fork has from its parent, to which what is logged here is sent. Those that were
    added here stay."""
    while _inherited:
        logger, handler = _inherited.pop()
        if handler is not _handler:
            logger.removeHandler(handler)


@contextmanager
def captured(sink: Sink, wanted: dict[str, int]) -> Iterator[None]:
    """Give `sink` what the block logs, at the levels that the owner has."""
    with _lock:
        if _handler not in logging.root.handlers:
            logging.root.addHandler(_handler)
        if _levels != wanted:
            for name in _levels.keys() - wanted.keys():
                logging.getLogger(name).setLevel(logging.NOTSET)
            for name, level in wanted.items():
                logging.getLogger(name or None).setLevel(level)
            _levels.clear()
            _levels.update(wanted)
        _sinks.append(sink)
    token = _SINK.set(sink)
    try:
        yield
    finally:
        _SINK.reset(token)
        with _lock:
            _sinks.remove(sink)

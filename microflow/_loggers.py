# SPDX-License-Identifier: Apache-2.0
"""Our loggers by name, and who listens to them: asked without loading ``logging``, which takes a seventh of our import.

Programs that never log do not load it: a command, a handler in AWS Lambda. While nobody has loaded it, nobody has
configured it, so it is as it begins: the root shows warnings and above on standard error, and drops the rest. A record
below a warning is then heard by nobody, whatever happens later. So a run asks ``TASK_RUN_LISTENERS.hear(level)``
before it makes a record, and the module is loaded by the first one that is to be heard, or by the program.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

# the root of our loggers is the package's own name, so that a vendored copy has its own
_ROOT = __name__.rpartition(".")[0]

# as ``logging`` has them
DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40


def get_logger(name: str | None = None) -> logging.Logger:
    """The logger `name` below the package's own."""
    import logging  # here, so that who has nothing to say does not load it

    if name is None:
        return logging.getLogger(_ROOT)
    return logging.getLogger(name if name.startswith(_ROOT + ".") else f"{_ROOT}.{name}")


class Listeners:
    """Whoever hears the records of one of our loggers."""

    def __init__(self, name: str) -> None:
        self._name = name
        #: whether a record of this level is heard by anybody; the logger's own method once there is a logger
        self.hear: Callable[[int], bool] = self._hear_at_first

    def _hear_at_first(self, level: int) -> bool:
        if level < WARNING and "logging" not in sys.modules:
            return False
        self.hear = get_logger(self._name).isEnabledFor
        return self.hear(level)


FLOW_RUN_LISTENERS = Listeners("flow_runs")
TASK_RUN_LISTENERS = Listeners("task_runs")

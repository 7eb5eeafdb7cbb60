# SPDX-License-Identifier: Apache-2.0
"""``print`` is logged for runs that ask for it (``log_prints``).

What does not work is to swap ``builtins.print`` for each run: runs overlap, and the wrong one would be left. So there
is one replacement, put there when a run first asks; it looks at a context variable and hands on to the ``print`` that
it replaced whatever is not to be logged.
"""

from __future__ import annotations

import builtins
import sys
from typing import TYPE_CHECKING, Any

from ._forks import new_lock
from .context import PRINTS_ARE_LOGGED
from .settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Callable

#: frames up from here to the line that prints; before Python 3.11 those of an adapter's methods count as well
_TO_THE_CALLER = 2 if sys.version_info >= (3, 11) else 4

# guards the replacement of ``builtins.print``
_replacing = new_lock()
_real_print: Callable[..., Any] | None = None


def effective_log_prints(wanted: bool | None) -> bool | None:
    """The ``log_prints`` of a run whose flow or task says `wanted`; to be given to its context. None there is what the
    run around it has, and the setting ``log_prints`` where there is none."""
    if wanted is None:
        if PRINTS_ARE_LOGGED.get() is not None:
            return None
        wanted = current_settings().log_prints
    if wanted:
        _replace_print()
    return wanted


def _replace_print() -> None:
    global _real_print
    if builtins.print is _print:
        return
    with _replacing:
        if builtins.print is not _print:
            _real_print, builtins.print = builtins.print, _print


def restore_print() -> None:
    """Put back the ``print`` that was replaced, unless somebody has replaced ours meanwhile."""
    with _replacing:
        if builtins.print is _print and _real_print is not None:
            builtins.print = _real_print


def _print(*values: object, **options: Any) -> None:
    """``print`` while some run logs its prints."""
    if PRINTS_ARE_LOGGED.get() and options.get("file") in (None, sys.stdout, sys.stderr):
        sep, end = options.get("sep"), options.get("end")
        text = (" " if sep is None else sep).join(map(str, values)) + ("\n" if end is None else end)
        from .logging import get_run_logger  # here, so that it is loaded only where prints are logged

        token = PRINTS_ARE_LOGGED.set(False)  # a handler may print
        try:
            get_run_logger().info("%s", text.rstrip(), stacklevel=_TO_THE_CALLER)
        finally:
            PRINTS_ARE_LOGGED.reset(token)
    elif _real_print is not None:
        _real_print(*values, **options)

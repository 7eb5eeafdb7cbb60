# SPDX-License-Identifier: Apache-2.0
"""What a module is called in a log.

A script is ``__main__`` in the process that it was started with, and has a name of its own in the process that
resumes its run. What is recorded is always the name of its own, and that is found again as ``__main__`` too.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def module_name(name: str) -> str:
    """The name of a module, also while it runs as ``__main__``: what it is called when it is imported."""
    if name != "__main__":
        return name
    main = sys.modules["__main__"]
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name)
    return re.sub(r".*[/\\]|\.py$", "", path) if path else name


def loaded_module(name: str) -> ModuleType | None:
    """The module that is imported under `name`, or is running as ``__main__`` and would be; else None."""
    found = sys.modules.get(name)
    if found is None and name == module_name("__main__"):
        found = sys.modules["__main__"]
    return found


def class_name(kind: type) -> str:
    """``module:qualname`` of a class, as it is recorded."""
    return f"{module_name(kind.__module__)}:{kind.__qualname__}"

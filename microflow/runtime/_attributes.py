# SPDX-License-Identifier: Apache-2.0
"""Modules whose attributes are looked up in what is running now.

For tests of flows, an environment variable takes the place of an attribute: ``MICROFLOW__RUNTIME__FLOW_RUN__NAME`` for
``runtime.flow_run.name``. Its text becomes what the attribute is otherwise: a number, a truth value, a moment.
"""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .._scalars import to_datetime

if TYPE_CHECKING:
    from collections.abc import Callable


def reader(module: str, attributes: dict[str, Callable[[], Any]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module that has these attributes."""
    prefix = f"MICROFLOW__RUNTIME__{module.rpartition('.')[2].upper()}__"

    def read(name: str) -> Any:
        if name not in attributes:
            raise AttributeError(f"{module} has no attribute {name!r}; it has {', '.join(sorted(attributes))}")
        value, text = attributes[name](), os.environ.get(prefix + name.upper())
        return value if text is None else _mocked(prefix + name.upper(), text, value)

    return read


def _mocked(variable: str, text: str, value: Any) -> Any:
    """The text of an environment variable as what it stands for."""
    if isinstance(value, (list, dict)):
        raise ValueError(f"{variable} is set, but a {type(value).__name__} cannot be mocked by a text")
    if isinstance(value, bool):
        return text.lower() == "true"
    if isinstance(value, datetime):
        moment = to_datetime(text)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
    return type(value)(text) if isinstance(value, (int, float)) else text

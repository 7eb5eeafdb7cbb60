# SPDX-License-Identifier: Apache-2.0
"""Modules whose attributes are looked up in what is running now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def reader(module: str, attributes: dict[str, Callable[[], Any]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module that has these attributes."""

    def read(name: str) -> Any:
        if name not in attributes:
            raise AttributeError(f"{module} has no attribute {name!r}; it has {', '.join(sorted(attributes))}")
        return attributes[name]()

    return read

# SPDX-License-Identifier: Apache-2.0
"""Values of the kinds that are easily got wrong when they are hashed or written."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


class Dict(dict):
    pass


class Own(Exception):
    pass


def self_containing():
    ring: list[Any] = []
    ring.append(ring)
    return ring


def nested(levels):
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value

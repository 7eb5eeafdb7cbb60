# SPDX-License-Identifier: Apache-2.0
"""Which test pins which numbered edge case of the behaviour that microflow promises.

The edge cases are numbered in three lists: ``task_engine``, ``futures_runners`` and ``flows``. A test that pins some
says so::

    @pins("task_engine", 12, 13)
    def test_a_list_of_delays_is_at_most_fifty_long(): ...

``test_behaviour_index`` reads these marks from the text of the tests and fails when a number is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    Function = TypeVar("Function", bound=Callable[..., object])

#: how many edge cases each list has
AREAS = {"task_engine": 161, "futures_runners": 111, "flows": 140}


def pins(area: str, *numbers: int) -> Callable[[Function], Function]:
    """Say that the decorated test pins these edge cases of `area`."""
    wrong = [number for number in numbers if not 1 <= number <= AREAS[area]]
    if wrong or not numbers:
        raise ValueError(f"{area} has the edge cases 1 to {AREAS[area]}; given were {list(numbers)}")
    return lambda test: test

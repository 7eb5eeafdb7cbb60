# SPDX-License-Identifier: Apache-2.0
"""For the tests of programs that use microflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._executor_checks import check

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

__all__ = ["check_executor"]


def check_executor(factory: Callable[[], Executor], *, show: bool = True) -> dict[str, str]:
    """What the executors that `factory` makes really do, one row for each question; printed unless `show` is false.

    `factory` is called several times, and what it makes is shut down: some questions leave an executor of no use. A
    word in capitals is a trap; ``ExecutorTaskRunner`` steps into none of them. Takes some seconds."""
    answers = check(factory)
    if show:
        width = max(map(len, answers))
        for question, answer in answers.items():
            print(f"{question:{width}}  {answer}")
    return answers

# SPDX-License-Identifier: Apache-2.0
"""For the tests of programs that use microflow."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ._crash_trials import crash_everywhere
from ._executor_checks import check
from .client import orchestration
from .settings import temporary_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from .client.orchestration import SyncClient

__all__ = ["check_executor", "crash_everywhere", "memory_home"]


@contextmanager
def memory_home() -> Iterator[SyncClient]:
    """Keep the runs of the block in memory, apart from all others and gone after it; yields the client that reads
    them. For the code of the block and the runs that it starts, not for other threads."""
    before = orchestration._clients
    orchestration._clients = {}
    try:
        with temporary_settings(home=":memory:"):
            yield orchestration.current_client()
    finally:
        orchestration._clients = before


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

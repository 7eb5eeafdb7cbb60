# SPDX-License-Identifier: Apache-2.0
"""For the tests of programs that use microflow."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import _executor_checks, _store_checks
from ._crash_trials import crash_everywhere
from .client import orchestration
from .settings import temporary_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from .client.orchestration import SyncClient
    from .stores import Store

__all__ = ["check_executor", "check_store", "crash_everywhere", "memory_home"]


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
    answers = _executor_checks.check(factory)
    if show:
        _print(answers)
    return answers


def check_store(factory: Callable[[str], Store], *, shared: bool = True, show: bool = True) -> dict[str, str]:
    """What the stores that `factory` makes really do, one row for each question; printed unless `show` is false.
    AssertionError, with all that differs, unless every answer is "ok".

    `factory` is called with a folder, which is empty and is removed afterwards: what is made of one folder shares its
    storage, and what is made of another starts empty (a store that is no folder may take the path as a name of its
    own). `shared=False` leaves out what is asked of several handles, for storage of one process. Takes some seconds."""
    answers = _store_checks.check(factory, shared=shared)
    if show:
        _print(answers)
    wrong = {question: answer for question, answer in answers.items() if answer != "ok"}
    if wrong:
        raise AssertionError("\n".join(["the store differs:", *(f"  {row}: {what}" for row, what in wrong.items())]))
    return answers


def _print(answers: dict[str, str]) -> None:
    width = max(map(len, answers))
    for question, answer in answers.items():
        print(f"{question:{width}}  {answer}")

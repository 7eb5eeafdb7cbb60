# SPDX-License-Identifier: Apache-2.0
"""check_executor tells what executors do: it finds each trap in executors that have it."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import pytest

from microflow._executor_checks import DANGEROUS, ROWS
from microflow.testing import check_executor
from tests.executors_support import loky_executor, process_pool_executor, thread_pool_executor


def answers_of(executor: Any) -> dict[str, str]:
    return check_executor(executor, show=False)


def test_a_pool_of_threads_has_no_trap(capsys):
    answers = check_executor(thread_pool_executor)
    assert list(answers) == [name for name, _ in [*ROWS, *DANGEROUS]]
    assert answers["workers are"] == "threads of this process"
    assert answers["a lambda"] == "ok"
    assert answers["two equal calls"] == "made twice"
    assert answers["keyword arguments"] == "all arrive"
    assert answers["a call under way is cancelled"].startswith("False, and it goes on")
    assert answers["microflow's envelope"] == "comes back"
    assert "usable after it" in answers["an exception with its own __init__"]
    assert answers["a worker dies"].startswith("not asked")
    printed = capsys.readouterr().out
    for name, answer in answers.items():
        assert any(line.startswith(name) and line.endswith(answer) for line in printed.splitlines())


def test_the_standard_pool_of_processes_breaks_where_the_envelope_does_not():
    answers = answers_of(process_pool_executor)
    assert answers["workers are"] == "other processes"
    assert "AttributeError" in answers["a lambda"] or "PicklingError" in answers["a lambda"]
    assert "UNUSABLE" in answers["an exception with its own __init__"]
    assert "BrokenProcessPool" in answers["a worker dies"]
    assert "executed 1 times; UNUSABLE" in answers["a worker dies"]
    assert answers["microflow's envelope"] == "comes back"


@pytest.mark.slow
def test_loky_breaks_where_the_envelope_does_not():
    answers = answers_of(loky_executor)
    assert answers["a lambda"] == "ok"
    assert "TerminatedWorkerError" in answers["an exception that holds a lock"]
    assert "UNUSABLE" in answers["a worker dies"]
    assert answers["microflow's envelope"] == "comes back"


class Liar(concurrent.futures.ThreadPoolExecutor):
    """Has every trap that can be had in one process: it swallows, remembers, and lies about cancellation."""

    def submit(self, fn: Any, /, *args: Any, key: Any = None, **kwargs: Any) -> Any:
        memory = self.__dict__.setdefault("memory", {})
        if not args and not kwargs:
            if fn not in memory:
                memory[fn] = super().submit(fn)
            return memory[fn]
        future = super().submit(fn, *args, **kwargs)
        future.cancel = lambda: True  # type: ignore[method-assign]
        return future


def test_each_trap_is_found():
    answers = answers_of(lambda: Liar(2))
    assert answers["two equal calls"] == "made ONCE"
    assert answers["keyword arguments"] == "SWALLOWS key"
    assert answers["a call under way is cancelled"].startswith("True (a LIE), and it goes on")


def test_an_executor_that_takes_nothing_is_told_so():
    class Broken(concurrent.futures.ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("closed for today")

    answers = answers_of(Broken)
    assert answers["workers are"] == "FAILED: RuntimeError: closed for today"
    assert answers["a lambda"] == "RuntimeError: closed for today"

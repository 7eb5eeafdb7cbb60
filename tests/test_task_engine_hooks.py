# SPDX-License-Identifier: Apache-2.0
"""Hooks of task runs: when they run, in what order, and that they hurt nobody."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any

import pytest

from microflow import flow, task
from microflow.states import Crashed
from tests.behaviour_support import pins
from tests.support import (
    Colour,
    both,
    fake_waits,
    memory_home,
    run,
    task_states,
)
from tests.task_support import failing, in_flow


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


class TestHooks:
    @both
    @pins("task_engine", 114)
    def test_run_once_after_the_final_state_in_their_order(self, colour: Colour):
        seen: list[tuple[str, str]] = []

        def hook(label):
            def called(task, task_run, state):
                assert task_run.state is state
                seen.append((label, state.name))

            return called

        options: dict[str, Any] = {
            "on_completion": [hook("c1"), hook("c2")],
            "on_failure": [hook("f")],
            "on_running": [hook("r")],
        }
        in_flow(colour, colour.task(failing(1), retries=1, **options))
        assert seen == [("r", "Running"), ("r", "Retrying"), ("c1", "Completed"), ("c2", "Completed")]
        seen.clear()
        in_flow(colour, colour.task(failing(2), retries=1, **options))
        assert seen == [("r", "Running"), ("r", "Retrying"), ("f", "Failed")]

    @both
    @pins("task_engine", 100)
    def test_on_running_fires_again_after_a_delayed_retry(self, colour: Colour, monkeypatch):
        fake_waits(monkeypatch)
        seen: list[str] = []
        made = colour.task(failing(1), retries=1, retry_delay_seconds=1)
        made.on_running(lambda task, run, state: seen.append(state.name))
        in_flow(colour, made)
        assert seen == ["Running", "Retrying"]

    @both
    @pins("task_engine", 113)
    def test_a_hook_that_raises_hurts_nobody(self, colour: Colour, caplog):
        seen: list[int] = []
        hooks = [lambda *_: seen.append(1), lambda *_: 1 / 0, lambda *_: seen.append(2)]
        state = in_flow(colour, colour.task(lambda: "value", on_completion=hooks))
        assert state.result(_sync=True) == "value"
        assert seen == [1, 2]
        assert "An error was encountered while running hook" in caplog.text
        assert "ZeroDivisionError" in caplog.text

    @both
    @pins("task_engine", 112)
    def test_hooks_may_be_coroutine_functions_partials_and_objects(self, colour: Colour, caplog):
        caplog.set_level(logging.INFO)
        seen: list[str] = []

        async def later(task, task_run, state):
            await asyncio.sleep(0)
            seen.append("coroutine")

        def with_more(task, task_run, state, word, other="default"):
            seen.append(word + other)

        class Hook:
            def __call__(self, task, task_run, state):
                seen.append("object")

        hooks = [later, functools.partial(with_more, word="partial-"), Hook()]
        in_flow(colour, colour.task(lambda: 1, on_completion=hooks))
        assert seen == ["coroutine", "partial-default", "object"]
        for name in ("later", "with_more", "Hook"):
            assert f"Running hook '{name}'" in caplog.text

    @both
    def test_a_coroutine_hook_of_a_blocking_task_runs_beside_a_running_loop(self, colour: Colour):
        seen: list[str] = []

        async def later(task, task_run, state):
            seen.append(state.name)

        blocking = task(lambda: 1, on_completion=[later])  # type: ignore[call-overload]

        @flow
        async def body():
            blocking()

        run(body())
        assert seen == ["Completed"]

    @both
    def test_no_hook_runs_for_a_crash_or_a_run_that_is_not_ready(self, colour: Colour):
        seen: list[str] = []

        def hook(task, task_run, state):
            seen.append(state.name)

        @colour.task(on_failure=[hook], on_completion=[hook], on_running=[hook])
        def work(upstream):
            raise KeyboardInterrupt

        assert in_flow(colour, work, upstream=Crashed()).name == "NotReady"
        assert seen == []
        with pytest.raises(KeyboardInterrupt):
            colour.run(work, 1)
        assert seen == ["Running"]

    @both
    def test_an_interrupt_in_a_hook_propagates_and_the_final_state_stays(self, colour: Colour):
        def hook(task, task_run, state):
            raise KeyboardInterrupt

        made = colour.task(lambda: 1, name="work", on_completion=[hook])

        @colour.flow
        def body():
            yield made()

        with pytest.raises(KeyboardInterrupt):
            colour.run(body)
        assert task_states("<lambda>") == [["Pending", "Running", "Completed"]]

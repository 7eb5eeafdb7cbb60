# SPDX-License-Identifier: Apache-2.0
"""What a re-execution does with a call that an earlier execution began: run it again, or fail it as interrupted."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from microflow import tags
from microflow._arguments import quote
from microflow.client.orchestration import current_client
from microflow.context import current_tags, serialize_context
from microflow.exceptions import InterruptedRun, NoSpace
from microflow.flow_runs import rerun
from microflow.task_engine import run_task
from tests.support import (
    Colour,
    Witness,
    both,
    death_after,
    fake_waits,
    flow_run_ids,
    memory_home,
    run,
    task_states,
)


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


def killed(made: Any, appends: int) -> str:
    """The id of a run whose process died after so many appends."""
    with death_after(appends) as death:
        run(made())
    assert death.came
    return flow_run_ids()[-1]


def flow_of(colour: Colour, made: Any) -> Any:
    @colour.flow
    def main():
        return quote((yield made(return_state=True)))

    return main


class TestAtMostOnce:
    @both
    def test_a_call_that_was_started_and_not_logged_as_ended_fails_as_interrupted(self, colour: Colour):
        witness, failures = Witness(), list[str]()

        @colour.task(at_most_once=True, retries=2, on_failure=[lambda task, run, state: failures.append(state.name)])
        def pay():
            witness.saw("paid")

        main = flow_of(colour, pay)
        run_id = killed(main, 3)  # the flow's creation and Running, then the task's Running
        assert (witness["paid"], task_states("pay")) == (1, [["Pending", "Running"]])
        state = run(rerun(main, run_id)).data.load().unwrap()
        assert (witness["paid"], state.name, failures) == (1, "Failed", ["Failed"])
        assert isinstance(state.data, InterruptedRun)
        assert "at_most_once" in str(state.data)
        assert task_states("pay") == [["Pending", "Running", "Failed"]]

    @both
    def test_a_call_that_was_not_started_is_run(self, colour: Colour):
        witness = Witness()

        @colour.task(at_most_once=True)
        def pay():
            witness.saw("paid")

        main = flow_of(colour, pay)
        run_id = killed(main, 2)
        run(rerun(main, run_id))
        assert (witness["paid"], task_states("pay")) == (1, [["Pending", "Running", "Completed"]])

    @both
    def test_a_call_that_waited_for_its_next_attempt_goes_on(self, colour: Colour, monkeypatch):
        """The attempt before is known to have failed, and the next had not begun."""
        fake_waits(monkeypatch)
        witness = Witness()

        @colour.task(at_most_once=True, retries=1, retry_delay_seconds=60)
        def pay():
            witness.saw("tried")
            if witness["tried"] == 1:
                raise ValueError("declined")

        main = flow_of(colour, pay)
        run_id = killed(main, 4)
        assert task_states("pay") == [["Pending", "Running", "AwaitingRetry"]]
        run(rerun(main, run_id))
        assert witness["tried"] == 2
        assert task_states("pay")[0][-1] == "Completed"

    @both
    def test_a_call_that_completed_and_whose_result_was_not_kept_is_not_run_again_either(self, colour: Colour):
        witness = Witness()

        @colour.task(at_most_once=True)
        def pay():
            witness.saw("paid")
            return threading.Lock()

        main = flow_of(colour, pay)
        with pytest.warns(RuntimeWarning, match="cannot be kept"):
            run_id = killed(main, 4)
        assert task_states("pay") == [["Pending", "Running", "Completed"]]
        state = run(rerun(main, run_id)).data.load().unwrap()
        assert isinstance(state.data, InterruptedRun)
        assert "its result was not kept" in str(state.data)
        assert witness["paid"] == 1

    @both
    def test_without_the_option_a_call_without_an_end_runs_again(self, colour: Colour):
        """The control of the tests above, and the promise: at least once."""
        witness = Witness()

        @colour.task
        def work():
            witness.saw("work")

        main = flow_of(colour, work)
        run_id = killed(main, 3)
        run(rerun(main, run_id))
        assert witness["work"] == 2


class TestRefusedAppends:
    """The log does not take the word of this process any more: that is no outcome of the task."""

    @both
    @pytest.mark.parametrize("nested", [False, True])
    def test_a_disk_that_was_full_for_a_moment_leaves_a_run_that_can_be_resumed(
        self, colour: Colour, monkeypatch, caplog, nested
    ):
        """Broken if it were recorded as the failure of the task, or of one around it, when there is room again."""
        witness = Witness()

        @colour.task
        def inner():
            witness.saw("inner")
            return 5

        @colour.task
        def outer():
            return (yield inner())

        @colour.flow
        def main():
            return (yield (outer if nested else inner)())

        store: Any = current_client().store
        real, full = store.append, [True]

        def append(run_id: str, bodies: list[dict[str, Any]], **kwargs: Any) -> Any:
            if full and any(body.get("type") == "COMPLETED" for body in bodies):
                full.clear()
                raise NoSpace("the disk is full")
            return real(run_id, bodies, **kwargs)

        monkeypatch.setattr(store, "append", append, raising=False)
        with pytest.raises(NoSpace):
            colour.run(main)
        (run_id,) = flow_run_ids()
        assert task_states("inner") == [["Pending", "Running"]]
        assert not any(record.exc_info for record in caplog.records if record.name == "microflow.task_runs")
        assert run(rerun(main, run_id)).result(_sync=True) == 5
        assert witness["inner"] == 2


@both
def test_contexts_may_be_handed_over_as_data(colour: Colour):
    """What another process described is current while the task runs."""
    seen: list[Any] = []
    made = colour.task(lambda: seen.append(current_tags()))
    with tags("carried"):
        described = serialize_context()
    run(run_task(made, context=described))
    run(run_task(made))
    assert seen == [{"carried"}, set()]

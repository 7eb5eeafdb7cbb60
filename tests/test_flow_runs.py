# SPDX-License-Identifier: Apache-2.0
"""Re-execution (invariant I13): a run whose process died runs again from the top, and what had ended is handed back.

The death is simulated: from some append on none reaches the log, and the owner is gone (``support.death_after``). What
the log holds then is what a kill would have left. Real kills are in the tests of the main job.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest

from microflow import flow, task
from microflow.client.orchestration import current_client
from microflow.exceptions import (
    Fenced,
    MicroflowException,
    MissingFlowError,
    NotPausedError,
    ObjectNotFound,
    RunningElsewhere,
    UpstreamTaskError,
)
from microflow.flow_runs import rerun
from microflow.futures import FutureList
from microflow.states import Failed
from microflow.task_runners import ThreadPoolTaskRunner
from microflow.tasks import Task
from tests.support import (
    PATIENCE,
    Colour,
    Witness,
    both,
    count_appends,
    death_after,
    flow_run_ids,
    flow_states,
    fold,
    memory_home,
    run,
    task_ids,
    task_states,
)


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


@pytest.fixture(params=["memory", "files"])
def _both_stores(request, monkeypatch, private_home, _memory):
    if request.param == "files":
        monkeypatch.setenv("MICROFLOW_HOME", str(private_home))


on_both_stores = pytest.mark.usefixtures("_both_stores")


def killed(made: Any, appends: int, *args: Any) -> str:
    """Run a flow until it dies after so many appends; the id of the run."""
    before = set(flow_run_ids())
    with death_after(appends) as death:
        run(made(*args))
    assert death.came
    return next(each for each in flow_run_ids() if each not in before and _is_root(each))


def _is_root(run_id: str) -> bool:
    return fold(run_id).flow_run.parent_flow_run_id is None


def killed_when(made: Any, ready: Any, *args: Any) -> str:
    """Run a flow again and again, each time an append further, until the log that its death leaves is `ready`."""
    for appends in range(1, 200):
        run_id = killed(made, appends, *args)
        if ready(run_id):
            return run_id
        for each in flow_run_ids():
            current_client().delete_flow_run(each)
    raise AssertionError("the log never was as the test wants it")


def again(made: Any, run_id: str, **options: Any) -> Any:
    """The final state of the run after it was run again."""
    return run(rerun(made, run_id, **options))


def completed(run_id: str) -> set[str]:
    """The ids of the task runs whose completion stands in the log."""
    recorded = fold(run_id)
    return {key for key, history in recorded.tasks.items() if history.last and history.last["type"] == "COMPLETED"}


@on_both_stores
class TestEveryDeath:
    """After a death at any append: the result of an unbroken run, and nothing that had ended is executed again."""

    def check(self, colour: Colour, make: Any) -> None:
        witness = Witness()
        made, expected = make(colour, witness)
        total = count_appends(lambda: run(made()))
        assert run(made()) == expected
        for appends in range(1, total):
            witness.clear()
            run_id = killed(made, appends)
            executed = Witness()
            executed.update(witness)
            ended = {key: task_name(run_id, key) for key in completed(run_id)}
            ids = set(fold(run_id).tasks)
            if flow_states(run_id)[-1] == "Completed":
                with pytest.raises(NotPausedError):
                    again(made, run_id)
                continue
            state = again(made, run_id)
            assert state.result(_sync=True) == expected, appends
            assert ids <= set(fold(run_id).tasks), appends  # what was begun goes on under its id
            for name in set(ended.values()):
                recorded = sum(1 for each in ended.values() if each == name)
                all_of_them = sum(1 for key in fold(run_id).tasks if task_name(run_id, key) == name)
                assert witness[name] - executed[name] <= all_of_them - recorded, (appends, name)

    @both
    def test_of_direct_and_nested_calls(self, colour: Colour):
        def make(colour: Colour, witness: Witness) -> tuple[Any, object]:
            @colour.task
            def leaf(x):
                witness.saw("leaf")
                return x + 1

            @colour.task
            def branch(x):
                witness.saw("branch")
                one = yield leaf(x)
                two = yield leaf(x)  # the same call a second time is another run
                return one + two

            @colour.flow
            def body():
                first = yield branch(1)
                second = yield leaf(first)
                return (yield branch(second))

            return body, 12

        self.check(colour, make)

    @both
    def test_of_submitted_and_mapped_calls_in_threads(self, colour: Colour):
        def make(colour: Colour, witness: Witness) -> tuple[Any, object]:
            @colour.task
            def double(x):
                witness.saw("double")
                return 2 * x

            @colour.task
            def total(values):
                witness.saw("total")
                return sum(values)

            @colour.flow(task_runner=ThreadPoolTaskRunner(3))
            def body():
                doubled = double.map([1, 2, 2, 3])
                return (yield total.submit(double.map(doubled)))

            return body, 32

        self.check(colour, make)

    @both
    def test_of_subflows_and_retries(self, colour: Colour):
        def make(colour: Colour, witness: Witness) -> tuple[Any, object]:
            tries = Witness()

            @colour.task(retries=1)
            def flaky(x):
                tries.saw(x)
                if tries[x] % 2:
                    raise ValueError("again")
                witness.saw("flaky")
                return x

            @colour.flow
            def child(x):
                return (yield flaky(x)) * 10

            @colour.flow
            def body():
                one = yield child(1)
                two = yield child(2)
                return one + two

            return body, 30

        self.check(colour, make)

    @both
    def test_of_a_flow_that_is_retried(self, colour: Colour):
        def make(colour: Colour, witness: Witness) -> tuple[Any, object]:
            @colour.task
            def step(attempt):
                witness.saw("step")
                return attempt

            @colour.flow(retries=1)
            def body():
                from microflow.context import FlowRunContext

                context = FlowRunContext.get()
                assert context is not None
                value = yield step("same arguments in both attempts")
                if context.flow_run.attempt == 0:
                    raise ValueError("first attempt")
                return value

            return body, "same arguments in both attempts"

        self.check(colour, make)


def task_name(run_id: str, key: str) -> str:
    return str(fold(run_id).tasks[key].created["task"]).rpartition("-")[0]


class TestHandedBack:
    @both
    def test_nothing_is_appended_for_what_is_handed_back_and_the_release_counts_it(self, colour: Colour):
        witness = Witness()
        made = colour.task(lambda x: witness.saw(x), name="made")

        @colour.flow
        def body():
            for x in range(3):
                yield made(x)

        run_id = killed_when(body, lambda each: len(completed(each)) == 3)
        position = fold(run_id).position
        again(body, run_id)
        assert witness == {0: 1, 1: 1, 2: 1} or max(witness.values()) >= 1
        new = current_client().store.read(run_id, position).records
        assert [record.kind for record in new] == ["claim", "state", "release"]
        assert new[-1].data["handed_back"] == 3

    @both
    def test_a_failure_with_no_retry_left_is_handed_back_as_its_exception(self, colour: Colour):
        witness = Witness()

        @colour.task(retries=1)
        def fail():
            witness.saw("fail")
            raise KeyError("gone", 5)

        good = colour.task(lambda: witness.saw("good"), name="good")

        @colour.flow
        def body():
            try:
                yield fail()
            except KeyError as error:
                caught = repr(error)
            broken = fail.submit()
            broken.wait()
            yield good()
            return [caught, broken.state.name]

        run_id = killed_when(body, lambda each: task_ids("<lambda>", each))
        witness.clear()
        assert again(body, run_id).result(_sync=True) == ["KeyError('gone', 5)", "Failed"]
        assert witness["fail"] == 0

    @both
    def test_what_was_begun_and_not_ended_runs_again_under_its_id(self, colour: Colour):
        witness = Witness()
        made = colour.task(lambda: witness.saw("made"), name="made", on_running=[lambda *_: None])

        @colour.flow
        def body():
            yield made()

        run_id = killed_when(body, lambda each: task_states("<lambda>", each) == [["Pending", "Running"]])
        before, executed = task_ids("<lambda>", run_id), witness["made"]
        again(body, run_id)
        assert task_ids("<lambda>", run_id) == before
        assert task_states("<lambda>", run_id) == [["Pending", "Running", "Running", "Completed"]]
        assert witness["made"] == executed + 1

    @both
    def test_a_parent_that_is_handed_back_takes_its_children_along(self, colour: Colour):
        witness = Witness()

        @colour.task
        def child(x):
            witness.saw("child")

        @colour.task
        def parent():
            witness.saw("parent")
            yield child(1)
            yield child.submit(2)

        last = colour.task(lambda: 1)

        @colour.flow
        def body():
            yield parent()
            yield last()

        run_id = killed_when(body, lambda each: task_ids("<lambda>", each))
        witness.clear()
        again(body, run_id)
        assert not witness

    def test_the_order_in_which_threads_submit_does_not_matter(self):
        """In the first execution the second call is submitted first, in the next one the first."""
        witness, turn = Witness(), [True]
        steps = {name: Task(lambda x: x, name=name) for name in ("a", "b")}

        @task
        def caller(name):
            for _ in range(2):
                steps[name].submit(name).wait()
            witness.saw(name)
            return name

        end = Task(lambda: 1, name="end")

        @flow(task_runner=ThreadPoolTaskRunner(4))
        def body():
            names = ["a", "b", "a"] if turn[0] else ["b", "a", "a"]
            result = sorted(FutureList([caller.submit(name) for name in names]).result())
            end()
            return result

        run_id = killed_when(body, lambda each: len(completed(each)) == 9)
        witness.clear()
        turn[0] = False
        known = set(fold(run_id).tasks)
        assert again(body, run_id).result(_sync=True) == ["a", "a", "b"]
        assert not witness
        assert len(set(fold(run_id).tasks) - known) <= 1  # the end itself

    @both
    def test_a_result_that_was_not_kept_is_made_again(self, colour: Colour):
        witness = Witness()

        @colour.task
        def lock():
            witness.saw("lock")
            return threading.Lock()

        last = colour.task(lambda: 1)

        @colour.flow
        def body():
            yield lock()
            yield last()
            return "done"

        with pytest.warns(RuntimeWarning, match="cannot be kept for re-execution"):
            run_id = killed_when(body, lambda each: task_ids("<lambda>", each))
        witness.clear()
        assert again(body, run_id).result(_sync=True) == "done"
        assert witness["lock"] == 1

    @both
    @on_both_stores
    @pytest.mark.parametrize("size", [10, 40_000])
    def test_small_and_large_results_come_back_equal(self, colour: Colour, size):
        value = {"text": "x" * size, "tuple": (1, {2}), "bytes": b"\x00"}
        made, last = colour.task(lambda: value, name="made"), colour.task(lambda: 1)

        @colour.flow
        def body():
            kept = yield made()
            yield last()
            return kept == value

        run_id = killed_when(body, lambda each: len(completed(each)) == 2)
        assert again(body, run_id).result(_sync=True) is True


class TestIdentity:
    @both
    def test_an_edited_task_is_handed_back_with_one_warning(self, colour: Colour):
        witness = Witness()

        def version_one(x):
            witness.saw("one")
            return x

        def version_two(x):
            witness.saw("two")
            return x + 1

        version_two.__name__, version_two.__qualname__ = version_one.__name__, version_one.__qualname__
        current = [colour.task(version_one, name="edited")]
        end = colour.task(lambda: 1)

        @colour.flow
        def body():
            first = yield current[0](1)
            second = yield current[0](2)
            yield end()
            return [first, second]

        run_id = killed_when(body, lambda each: len(completed(each)) == 3)
        current[0] = colour.task(version_two, name="edited")
        current[0]._code = version_two.__code__  # its wrapper of this colour has the same code for every text
        assert current[0].code_digest() != colour.task(version_one).code_digest()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert again(body, run_id).result(_sync=True) == [1, 2]
        assert [str(each.message)[:29] for each in caught] == ["the code of task 'edited' cha"]
        assert witness["two"] == 0

    @both
    def test_another_version_is_another_call(self, colour: Colour):
        witness = Witness()
        current = [colour.task(lambda: witness.saw("one"), name="made", version="1")]
        end = colour.task(lambda: 1, name="end")

        @colour.flow
        def body():
            yield current[0]()
            yield end()

        run_id = killed_when(body, lambda each: len(completed(each)) == 2)
        current[0] = current[0].with_options(version="2")
        witness.clear()
        again(body, run_id)
        assert witness["one"] == 1

    @both
    def test_other_arguments_are_another_call(self, colour: Colour):
        witness, argument = Witness(), [1]
        made, end = colour.task(lambda x: witness.saw(x), name="made"), colour.task(lambda: 1, name="end")

        @colour.flow
        def body():
            yield made(argument[0])
            yield end()

        run_id = killed_when(body, lambda each: len(completed(each)) == 2)
        witness.clear()
        argument[0] = 2
        again(body, run_id)
        assert witness == {2: 1}

    @both
    def test_a_call_of_a_later_attempt_is_not_that_of_an_earlier_one(self, colour: Colour):
        witness = Witness()
        made = colour.task(lambda: witness.saw("made"), name="made")

        @colour.flow(retries=1)
        def body():
            yield made()
            if fold(flow_run_ids()[0]).flow_run.attempt == 0:
                raise ValueError

        run_id = killed_when(body, lambda each: flow_states(each)[-2:] == ["AwaitingRetry", "Running"])
        assert task_states("<lambda>", run_id) == [["Pending", "Running", "Completed"]]
        witness.clear()
        again(body, run_id)
        assert witness["made"] == 1
        assert task_states("<lambda>", run_id) == [["Pending", "Running", "Completed"]] * 2

    @both
    def test_upstreams_tell_equal_calls_apart_in_whatever_order(self, colour: Colour):
        witness, names = Witness(), ["a", "b"]
        source = colour.task(lambda name: name, name="source")
        end = colour.task(lambda: 1, name="end")

        @colour.task
        def consumer(value):
            witness.saw(value)
            return value

        @colour.flow
        def body():
            futures = {name: source.submit(name) for name in ("a", "b")}
            consumed = {name: consumer.submit(futures[name]) for name in names}
            values = []
            for name in ("a", "b"):
                values.append((yield consumed[name]))
            yield end()
            return values

        run_id = killed_when(body, lambda each: len(completed(each)) == 5)
        witness.clear()
        names.reverse()
        assert again(body, run_id).result(_sync=True) == ["a", "b"]
        assert not witness

    @both
    def test_an_upstream_counts_by_its_call_and_not_by_its_result(self, colour: Colour):
        witness = Witness()
        source = colour.task(lambda: threading.Lock(), name="source")
        made = colour.task(lambda x: witness.saw("made"), name="made")
        end = colour.task(lambda: 1, name="end")

        @colour.flow
        def body():
            yield made.submit(source.submit())
            yield end()

        with pytest.warns(RuntimeWarning, match="cannot be kept"):
            run_id = killed_when(body, lambda each: len(completed(each)) == 3)
        witness.clear()
        again(body, run_id)  # the source runs again and gives another lock
        assert not witness


class TestSubflows:
    @both
    def test_a_child_that_had_not_ended_is_adopted(self, colour: Colour):
        witness = Witness()
        first = colour.task(lambda: witness.saw("first"), name="first")
        second = colour.task(lambda: witness.saw("second"), name="second")

        @colour.flow
        def child():
            yield first()
            yield second()
            return "child"

        @colour.flow
        def parent():
            return (yield child())

        def half(_):
            ids = flow_run_ids("child")
            return bool(ids) and len(completed(ids[0])) == 1

        run_id = killed_when(parent, half)
        witness.clear()
        assert again(parent, run_id).result(_sync=True) == "child"
        assert len(flow_run_ids("child")) == 1
        assert "first" not in witness
        assert flow_states(flow_run_ids("child")[0]) == ["Pending", "Running", "Completed"]
        assert fold(flow_run_ids("child")[0]).epoch == 2

    @both
    def test_a_child_that_was_named_but_not_made_is_made_under_its_id(self, colour: Colour):
        child = colour.flow(lambda: "child", name="child")

        @colour.flow
        def parent():
            return (yield child())

        run_id = killed_when(parent, lambda each: fold(each).tasks)
        assert flow_run_ids("child") == []
        (history,) = fold(run_id).tasks.values()
        assert again(parent, run_id).result(_sync=True) == "child"
        assert flow_run_ids("child") == [history.created["child"]]

    @both
    @on_both_stores
    @pytest.mark.parametrize("size", [10, 40_000])
    def test_a_child_whose_end_its_parent_did_not_record_is_handed_back_from_its_own_log(self, colour: Colour, size):
        witness = Witness()

        def body():
            witness.saw("child")
            return "x" * size

        child, end = colour.flow(body, name="child"), colour.task(lambda: 1)

        @colour.flow
        def parent():
            text = yield child()
            yield end()
            return len(text)

        def ended(_):
            ids = flow_run_ids("child")
            return bool(ids) and flow_states(ids[0])[-1] == "Completed"

        run_id = killed_when(parent, ended)
        assert completed(run_id) == set()
        witness.clear()
        client = current_client()
        for left in range(2, 4):  # it dies again, and again, with the child's end recorded by now
            with death_after(left) as death:
                run(rerun(parent, run_id))
            assert death.came
            for live in list(client.owned.values()):
                client.abandon(live)
        assert again(parent, run_id).result(_sync=True) == size
        assert not witness
        (tracking,) = (each for each in fold(run_id).tasks.values() if each.created["task"] == "child")
        assert [state["type"] for state in tracking.states] == ["PENDING", "COMPLETED"]

    @both
    def test_a_failed_child_is_handed_back_as_its_exception(self, colour: Colour):
        witness = Witness()

        def body():
            witness.saw("child")
            raise KeyError("gone")

        child, end = colour.flow(body, name="child"), colour.task(lambda: 1)

        @colour.flow
        def parent():
            try:
                yield child()
            except KeyError as error:
                caught = repr(error)
            state = yield child(return_state=True)
            yield end()
            return [caught, state.name]

        run_id = killed_when(parent, lambda each: task_ids("<lambda>", each))
        witness.clear()
        assert again(parent, run_id).result(_sync=True) == ["KeyError('gone')", "Failed"]
        assert not witness


class TestTakingOver:
    @both
    def test_a_run_that_has_ended_is_not_run_again_unless_forced(self, colour: Colour):
        witness = Witness()
        good = colour.task(lambda: witness.saw("good"), name="good")

        @colour.task
        def flaky():
            witness.saw("flaky")
            if witness["flaky"] == 1:
                raise ValueError("once")
            return "second"

        @colour.flow
        def body():
            yield good()
            return (yield flaky())

        colour.run(body, return_state=True)
        (run_id,) = flow_run_ids()
        with pytest.raises(NotPausedError, match="has ended"):
            again(body, run_id)
        assert again(body, run_id, force=True).result(_sync=True) == "second"
        assert witness == {"good": 1, "flaky": 2}
        assert flow_states() == ["Pending", "Running", "Failed", "Resuming", "Running", "Completed"]

    def test_a_run_with_a_live_owner_is_refused_and_can_be_stolen(self):
        begun, release, said = threading.Event(), threading.Event(), list[BaseException]()

        @task
        def held(first):
            if first:
                begun.set()
                release.wait(PATIENCE)
            return "value"

        first_time = [True]

        @flow
        def body():
            return held(first_time[0])

        def owner():
            try:
                body()
            except BaseException as error:  # what a fenced owner gets is the point
                said.append(error)

        thread = threading.Thread(target=owner)
        thread.start()
        assert begun.wait(PATIENCE)
        (run_id,) = flow_run_ids()
        with pytest.raises(RunningElsewhere, match="is running in process"):
            again(body, run_id)
        first_time[0] = False
        assert again(body, run_id, steal=True).result(_sync=True) == "value"
        release.set()
        thread.join(PATIENCE)
        assert isinstance(said[0], Fenced)
        assert flow_states(run_id) == ["Pending", "Running", "Completed"]

    def test_the_wrong_flow_or_id_is_named_before_anything_is_claimed(self):
        @flow
        def body():
            task(lambda: 1)()

        run_id = killed_when(body, lambda each: fold(each).tasks)
        with pytest.raises(MissingFlowError, match=r"'body'.*'other'"):
            again(flow(lambda: 1, name="other"), run_id)  # type: ignore[call-overload]
        with pytest.raises(MicroflowException, match="cannot be run again here"):
            again(flow(name="body")(lambda needed: 1), run_id)
        with pytest.raises(ObjectNotFound):
            again(body, "00000000-0000-0000-0000-000000000000")
        assert fold(run_id).epoch == 1

    @both
    def test_the_recorded_parameters_are_used_whatever_their_kind(self, colour: Colour):
        @colour.flow
        def body(a, b=2, *more, c, d=4, **named):
            yield colour.task(lambda: 1)()
            return [a, b, more, c, d, named]

        with death_after(3):
            colour.run(body, 1, 5, 6, 7, c=8, e=9)
        (run_id,) = flow_run_ids()
        assert again(body, run_id).result(_sync=True) == [1, 5, (6, 7), 8, 4, {"e": 9}]

    def test_a_bound_flow_is_run_again_on_its_object(self):
        class Shop:
            def __init__(self, name):
                self.name = name

            @flow
            def close(self, hour):
                task(lambda: 1)()
                return f"{self.name} closes at {hour}"

        with death_after(3):
            Shop("old").close(20)
        (run_id,) = flow_run_ids()
        assert again(Shop("new").close, run_id).result(_sync=True) == "new closes at 20"

    @both
    def test_a_run_that_waited_for_a_retry_waits_on(self, colour: Colour):
        attempts = Witness()

        @colour.flow(retries=1, retry_delay_seconds=0.01)
        def body():
            attempts.saw("body")
            if attempts["body"] == 1:
                raise ValueError
            return "second"

        with death_after(3):  # created, Running, AwaitingRetry
            colour.run(body)
        (run_id,) = flow_run_ids()
        assert flow_states() == ["Pending", "Running", "AwaitingRetry"]
        assert again(body, run_id).result(_sync=True) == "second"
        assert flow_states() == ["Pending", "Running", "AwaitingRetry", "Running", "Completed"]

    @both
    def test_a_run_that_was_not_ready_stays_so(self, colour: Colour):
        made, end = colour.task(lambda x: x, name="made"), colour.task(lambda: 1, name="end")

        @colour.flow
        def body():
            state = yield made(Failed(message="upstream"), return_state=True)
            yield end()
            if state.name != "NotReady":
                raise UpstreamTaskError
            return "stays"

        run_id = killed_when(body, lambda each: len(fold(each).tasks) == 2)
        assert again(body, run_id).result(_sync=True) == "stays"

    @both
    def test_a_dead_run_is_seen_as_crashed_until_it_is_taken_over(self, colour: Colour):
        @colour.flow
        def body():
            yield colour.task(lambda: 1)()

        run_id = killed_when(body, lambda each: fold(each).tasks)
        client = current_client()
        assert client.read_flow_run(run_id).state_name == "Crashed"
        assert [each.state_name for each in client.read_task_runs(flow_run_id=run_id)] == ["Crashed"]
        again(body, run_id)
        assert client.read_flow_run(run_id).state_name == "Completed"

# SPDX-License-Identifier: Apache-2.0
"""What crosses to a worker and back: bytes that no damage turns into an exception out of the worker's function."""

from __future__ import annotations

import os
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow import task
from microflow._attempt import run_envelope
from microflow._carried import checked_news, describe_definition, load_definition, why_not_findable
from microflow._dispatch import DispatchingTaskRunEngine, PackedCall
from microflow._envelope import (
    ORIGIN,
    is_origin,
    join,
    pack_argument,
    pack_error,
    pack_task,
    resolver_of_owner,
    split,
    unpack_error,
)
from microflow._waits import finish
from microflow.calls import new_call
from microflow.entrypoints import resolver_through
from microflow.exceptions import CrashedRun, NotTransferable, SerializationError
from microflow.states import Completed
from tests import remote_tasks as remote


class Recorder:
    """A carrier in this process that keeps what it carried."""

    def __init__(self, change=lambda payload: payload, answer=lambda outcome: outcome) -> None:
        self.change, self.answer = change, answer
        self.payloads: list[bytes] = []
        self.outcomes: list[bytes] = []

    def carry(self, run_id, payload, timeout, on_log):
        self.payloads.append(payload)
        self.outcomes.append(run_envelope(self.change(payload)))
        return self.answer(self.outcomes[-1])


def state_of_run(one, parameters, carrier):
    """Run a task through a carrier outside of any flow: its final state."""
    call = new_call(one, parameters)
    engine = DispatchingTaskRunEngine(one, parameters, call, PackedCall(one, parameters), carrier)
    finish(engine._run())
    return engine.state


# ------------------------------------------------------------------------------------------------------- bytes


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()), st.lists(st.binary(max_size=50)))
def test_what_is_joined_is_split_again(header, blobs):
    header.pop("blobs", None)
    found, parts = split(join(header, blobs))
    found.pop("blobs")
    assert (found, parts) == (header, blobs)


@given(st.binary(max_size=100))
def test_no_bytes_make_the_workers_function_raise(data):
    header, blobs = split(run_envelope(data))
    assert header["kind"] == "error"
    assert isinstance(unpack_error(header["form"], blobs[0], resolver_of_owner(())), Exception)


def test_no_damage_makes_the_workers_function_raise():
    carrier = Recorder()
    assert state_of_run(remote.add, {"x": 1, "y": 2}, carrier).read_result() == 3
    (payload,) = carrier.payloads
    chance = random.Random(5)
    for _ in range(100):
        at = chance.randrange(len(payload))
        damaged = payload[:at] + bytes([chance.randrange(256)]) + payload[at + 1 :]
        header, _ = split(run_envelope(damaged))
        assert header["kind"] in ("value", "error")
    for end in range(0, len(payload), 7):
        assert split(run_envelope(payload[:end]))[0]["kind"] == "error"


def test_an_outcome_of_another_attempt_fails_the_run():
    def exchanged(outcome):
        header, blobs = split(outcome)
        return join({**header, "attempt": "another"}, blobs)

    state = state_of_run(remote.add, {"x": 1, "y": 2}, Recorder(answer=exchanged))
    assert state.is_failed()
    assert "came back for attempt" in state.message


def test_an_envelope_that_arrives_damaged_fails_the_run_and_says_so():
    state = state_of_run(remote.add, {"x": 1, "y": 2}, Recorder(change=lambda payload: payload[:-1]))
    assert state.is_failed()
    assert "this is no envelope" in state.message


def test_no_two_envelopes_are_equal():
    carrier = Recorder()
    for _ in range(2):
        state_of_run(remote.add, {"x": 1, "y": 2}, carrier)
    assert carrier.payloads[0] != carrier.payloads[1]


def test_an_interrupt_whose_class_is_not_here_is_a_crash():
    class Stop(BaseException):
        pass

    def interrupted(outcome):
        header, _ = split(outcome)
        form, blob = pack_error(Stop("now"))
        return join({**header, "kind": "interrupt", "form": form}, [blob])

    call = new_call(remote.add, {"x": 1, "y": 1})
    carrier = Recorder(answer=interrupted)
    engine = DispatchingTaskRunEngine(
        remote.add, {"x": 1, "y": 1}, call, PackedCall(remote.add, {"x": 1, "y": 1}), carrier
    )
    with pytest.raises(BaseException, match="the task was interrupted.*Stop: now"):
        finish(engine._run())
    assert engine.state.is_crashed()
    with pytest.raises(CrashedRun):
        engine.state.read_result()


# --------------------------------------------------------------------------------------------------- functions


class TestHowATaskIsFound:
    def test_by_its_name_and_it_is_the_very_object(self):
        described, fn = pack_task(remote.add)
        assert fn is None
        assert described["entrypoint"] == "tests.remote_tasks:add"
        assert load_definition(described) is remote.add

    def test_one_of_another_name_over_the_same_function_is_made_anew(self):
        described, _ = pack_task(remote.add.with_options(name="sum", version="2"))
        found = load_definition(described)
        assert (found.name, found.version, found.fn) == ("sum", "2", remote.add.fn)

    def test_a_function_without_decorator(self):
        plain = task(remote.closure_free)
        assert load_definition(pack_task(plain)[0]).fn is remote.closure_free

    def test_what_has_no_name_goes_by_pickle_if_it_can(self):
        import functools

        described, fn = pack_task(task(name="one")(functools.partial(remote.closure_free, 1)))
        assert (described["entrypoint"], fn[0]) == (None, "pickle")
        with pytest.raises(NotTransferable, match="cannot run in another process"):
            pack_task(task(name="one")(functools.partial(lambda: 1)))

    @pytest.mark.parametrize(
        ("fn", "reason"),
        [
            (lambda: None, "it is a lambda"),
            (remote.Thing("a").make, None),
            (remote.add.fn, None),
            (os.getcwd, None),
        ],
    )
    def test_why_it_is_not_found(self, fn, reason):
        assert why_not_findable(fn) == reason

    def test_a_name_that_is_gone(self, monkeypatch):
        fn = remote.closure_free
        monkeypatch.delattr(remote, "closure_free")
        assert why_not_findable(fn) == "there is no closure_free in its module tests.remote_tasks"

    def test_a_definition_says_its_kind(self):
        assert describe_definition(remote.subflow)["kind"] == "microflow.flows:Flow"


class TestValues:
    def test_an_argument_that_cannot_go_is_named_with_its_place(self):
        with pytest.raises(NotTransferable, match=r"argument 'y' of task 'add'.*: y\['k'\]\[1\]:"):
            pack_argument(remote.add, "y", {"k": [1, threading.Lock()]})

    def test_arguments_that_a_run_has_to_make_first_are_left_for_later(self):
        packed = PackedCall(remote.add, {"x": [1], "y": Completed(data=1)})
        assert list(packed.arguments) == ["x"]

    @pytest.mark.parametrize(
        "error",
        [ValueError("a", 1), remote.BadInit("b", code=2), remote.HoldsALock("c"), KeyError("d"), OSError(2, "e")],
    )
    def test_every_exception_comes_back(self, error):
        back = unpack_error(*pack_error(error), resolver_of_owner(()))
        assert str(error) in str(back)

    def test_classes_of_the_main_program_are_found_under_its_other_names(self):
        owner = resolver_of_owner(["script"])
        import __main__

        __main__.marked_for_a_test = object()  # type: ignore[attr-defined]
        try:
            for name in ("__main__", "__mp_main__", "script"):
                assert owner(name, "marked_for_a_test") is __main__.marked_for_a_test  # type: ignore[attr-defined]
        finally:
            del __main__.marked_for_a_test  # type: ignore[attr-defined]
        worker = resolver_through({"names": ["__main__", "script"], "place": "tests.remote_tasks"})
        assert worker("script", "Point") is remote.Point
        assert worker("__main__", "Point") is remote.Point
        assert worker("tests.remote_tasks", "Plain") is remote.Plain


def test_an_envelope_of_this_process_is_known_and_a_forks_is_not(monkeypatch):
    assert is_origin(ORIGIN)
    assert not is_origin("1-0")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert not is_origin(ORIGIN)


@pytest.mark.parametrize(
    "body",
    [
        {"k": "claim", "run": "0" * 8},
        {"k": "state"},
        {"k": "state", "run": "../../etc"},
        {"k": "run", "run": "00000000-0000-4000-8000-000000000000"},
        {"k": "task", "run": "00000000-0000-4000-8000-00000000000A"},
        "state",
    ],
)
def test_a_worker_reports_nothing_but_task_runs(body):
    with pytest.raises(SerializationError, match="no record of a task run"):
        checked_news([body])

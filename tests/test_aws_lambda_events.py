# SPDX-License-Identifier: Apache-2.0
"""What a Lambda handler makes of its options and events, called by hand in this process."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from microflow import flow, get_client
from microflow.exceptions import ConfigurationError
from microflow.ext.aws_lambda import InvalidEvent, PayloadMismatch, lambda_handler
from microflow.flow_runs import suspend_flow_run
from microflow.states import Running
from tests.lambda_support import Context


def by_id(event: Any, context: Any) -> Any:
    return event.get("id") if isinstance(event, dict) else None


def without_id(event: Any) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "id"}


def ask(action: str, run_id: str, **more: Any) -> dict[str, Any]:
    return {"microflow": {"action": action, "flow_run_id": run_id, **more}}


def runs() -> list[Any]:
    found: list[Any] = get_client(sync_client=True).read_flow_runs()
    return found


class Opaque:
    """Nothing that JSON can carry."""

    def __init__(self, number: int) -> None:
        self.number = number


class Account:
    @flow
    def pay(self, amount: int) -> int:
        return amount


ACCOUNT = Account()


@flow
def echo(value: Any = None) -> Any:
    return value


@flow
def number_of(value: Any) -> int:
    return len(value) if isinstance(value, str) else getattr(value, "number", value)


@flow
async def echo_async(value: Any = None) -> Any:
    return value


@flow
def asks() -> int:
    answer: int = suspend_flow_run(wait_for_input=int)
    return answer


@flow
def asks_not_for_long() -> int:
    answer: int = suspend_flow_run(wait_for_input=int, timeout=0)
    return answer


@flow
def outer() -> str:
    return inner()


@flow
def inner() -> str:
    return "done"


# ------------------------------------------------------------------------------------- delivered twice


@pytest.mark.filterwarnings("ignore:the parameters of")
@pytest.mark.parametrize(
    ("handled", "event", "parameters", "result"),
    [
        (ACCOUNT.pay, {"id": "1", "amount": 3}, without_id, 3),
        (number_of, {"id": "1", "value": 4}, lambda event: {"value": Opaque(event["value"])}, 4),
        (number_of, {"id": "1", "value": "x" * 1_100_000}, without_id, 1_100_000),
        (number_of, {"id": "1", "value": "\ud800"}, without_id, 1),
    ],
    ids=["bound to an object", "kept by pickle", "too large to be kept", "no valid Unicode"],
)
def test_a_second_delivery_is_answered_whatever_form_the_parameters_have(handled, event, parameters, result):
    handler = lambda_handler(handled, key=by_id, parameters=parameters)
    first = handler(event, None)
    assert first["result"] == result
    assert handler(event, None) == first
    assert len(runs()) == 1


@pytest.mark.filterwarnings("ignore:the parameters of")
def test_other_parameters_are_recognised_though_those_of_the_first_were_too_large_to_be_kept():
    handler = lambda_handler(number_of, key=by_id, parameters=without_id)
    handler({"id": "1", "value": "x" * 1_100_000}, None)
    with pytest.raises(PayloadMismatch, match="started under the key '1' with other parameters"):
        handler({"id": "1", "value": "y" * 1_100_000}, None)


def test_other_parameters_are_recognised_where_one_has_no_json_form_or_the_file_of_the_first_is_gone(private_home):
    handler = lambda_handler(number_of, key=by_id, parameters=without_id)
    handler({"id": "1", "value": 4}, None)
    with pytest.raises(PayloadMismatch):
        handler({"id": "1", "value": Opaque(4)}, None)
    event = {"id": "2", "value": "x" * 100_000}
    first = handler(event, None)
    (file,) = (path for path in private_home.rglob("*") if path.is_file() and "x" * 1000 in path.read_text("latin-1"))
    file.unlink()
    assert handler(event, None) == first
    with pytest.raises(PayloadMismatch):
        handler({"id": "2", "value": "y" * 100_000}, None)


def test_events_that_mean_the_same_parameters_are_the_same_start():
    """In another order, in another form that the annotation makes the same, and of a run whose log has no digest."""
    handler = lambda_handler(ACCOUNT.pay, key=by_id, parameters=without_id)
    first = handler({"id": "1", "amount": 3}, None)
    assert handler({"amount": "3", "id": "1"}, None) == first
    made = get_client(sync_client=True).create_flow_run(echo, parameters={"value": {"a": 1}}, idempotency_key="2")
    handler = lambda_handler(echo, key=by_id, parameters=without_id)
    answer = handler({"id": "2", "value": {"a": 1}}, None)
    assert (answer["flow_run_id"], answer["result"]) == (str(made.id), {"a": 1})
    with pytest.raises(PayloadMismatch):
        handler({"id": "2", "value": {"a": 2}}, None)


# ------------------------------------------------------------------------------- options, and no claim leaks


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"margin": "2"}, TypeError, "margin must be a number of seconds or None, got '2'"),
        ({"margin": -1}, ValueError, "margin must be at least 0"),
        ({"margin": float("nan")}, ValueError, "margin must be at least 0"),
        ({"max_hops": "x"}, TypeError, "max_hops must be a whole number, got 'x'"),
        ({"max_hops": -1}, ValueError, "max_hops must not be negative"),
        ({"key": "id"}, TypeError, "key must be a function or None, got 'id'"),
        ({"parameters": {}}, TypeError, "parameters must be a function or None"),
        ({"continue_with": 5}, TypeError, "continue_with must be a function or None, got 5"),
    ],
)
def test_an_option_that_is_no_good_is_refused_when_the_handler_is_made(options, error, words):
    with pytest.raises(error, match=words):
        lambda_handler(echo, **options)


def test_what_is_no_flow_and_a_flow_that_nobody_could_import_again_are_refused_with_the_cure():
    @flow
    def local() -> None: ...

    with pytest.raises(TypeError, match="decorated with @flow; got <built-in function len>"):
        lambda_handler(len)  # type: ignore[arg-type]  # that is what it tests
    with pytest.raises(ConfigurationError, match="'local' cannot be a Lambda handler.*Define it at the top level"):
        lambda_handler(local)


class Wrong:
    get_remaining_time_in_millis = 30_000


def test_a_context_that_cannot_be_asked_is_refused_before_anything_is_recorded():
    with pytest.raises(TypeError, match="the context must be that of AWS Lambda, or None"):
        lambda_handler(echo)({}, Wrong())
    assert runs() == []


def test_a_coroutine_flow_runs_in_a_handler_that_a_loop_calls():
    async def call() -> dict[str, Any]:
        return lambda_handler(echo_async)({"value": 5}, None)

    assert asyncio.run(call())["result"] == 5


@pytest.mark.filterwarnings("ignore:the parameters of")
@pytest.mark.parametrize("value", ["x", "x" * 1_100_000], ids=["kept", "too large to be kept"])
def test_a_run_that_no_engine_took_is_let_go_of_and_the_next_delivery_runs_it(monkeypatch, value):
    """Broken if its claim stood as long as the environment lives: each delivery would find it running. What the log
    does not keep of the parameters, the event has."""
    begin = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "deadline" in thread.name:
            raise RuntimeError("can't start new thread")
        begin(thread)

    handler = lambda_handler(number_of, key=by_id, parameters=without_id)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            handler({"id": "1", "value": value}, Context(20))
    answer = handler({"id": "1", "value": value}, Context(20))
    assert (answer["status"], answer["result"]) == ("completed", len(value))


# ---------------------------------------------------------------------------------------------- events


@pytest.mark.parametrize("given", [[], 0, "", False, "x", [1]])
def test_parameters_that_are_no_object_are_an_invalid_event_and_not_the_defaults(given):
    with pytest.raises(InvalidEvent, match=r"\['parameters'\] must be an object, got"):
        lambda_handler(echo)({"microflow": {"action": "start", "parameters": given}}, None)
    assert runs() == []


def test_a_start_without_parameters_has_the_defaults():
    assert lambda_handler(echo)({"microflow": {"action": "start", "parameters": None}}, None)["result"] is None
    assert lambda_handler(echo)({"microflow": {"action": "start"}}, None)["status"] == "completed"


def test_an_input_that_does_not_fit_is_an_invalid_event_and_the_run_waits_on():
    handler = lambda_handler(asks)
    run_id = handler({}, None)["flow_run_id"]
    with pytest.raises(InvalidEvent, match="for field 'value'.*'x' is not of type 'integer'"):
        handler(ask("resume", run_id, input={"value": "x"}), None)
    with pytest.raises(InvalidEvent, match=r"\['input'\] must be an object, got 7"):
        handler(ask("resume", run_id, input=7), None)
    assert handler(ask("status", run_id), None)["status"] == "suspended"
    answer = handler(ask("resume", run_id, input={"value": 7}), None)
    assert answer["result"] == 7
    assert handler(ask("resume", run_id, input={"value": 7}), None) == answer, "it was delivered twice"
    with pytest.raises(InvalidEvent, match=r"\['input'\] must be an object, got 7"):
        handler(ask("resume", run_id, input=7), None)


def test_a_resume_that_comes_too_late_is_answered_the_same_each_time():
    handler = lambda_handler(asks_not_for_long)
    run_id = handler({}, None)["flow_run_id"]
    answer = handler(ask("resume", run_id, input={"value": 7}), None)
    assert answer["status"] == "failed"
    assert "never resumed" in answer["error"]
    assert handler(ask("resume", run_id, input={"value": 7}), None) == answer


def test_a_subflow_whose_process_died_is_not_run_without_its_parent():
    client = get_client(sync_client=True)
    outer()
    (parent,) = (run for run in runs() if run.flow_name == "outer")
    orphan = client.new_flow_run(inner, parent_flow_run_id=parent.id)
    live = client.start(orphan, inner, {}, Running(), own=True)
    client.abandon(live)  # as a killed process leaves it
    with pytest.raises(InvalidEvent, match=f"{orphan.id} cannot be resumed: it is a subflow"):
        lambda_handler(inner)(ask("resume", str(orphan.id)), None)
    assert client.fold(str(orphan.id)).flow_run.state.is_running(), "nothing was recorded"


@pytest.mark.parametrize(
    ("value", "carried"),
    [("a\ud800b", "a\\ud800b"), ({"\udfff": ["\ud800"]}, {"\\udfff": ["\\ud800"]}), ("naïve 😀", "naïve 😀")],
)
def test_text_that_is_no_valid_unicode_is_answered_as_text_that_can_be_carried(value, carried):
    answer = lambda_handler(echo)({"value": value}, None)
    assert answer["result"] == carried
    json.dumps(answer, ensure_ascii=False).encode()


@flow
def fails(words: str) -> None:
    raise ValueError(words)


def test_an_error_that_is_no_valid_unicode_is_answered_as_text_that_can_be_carried():
    answer = lambda_handler(fails)({"words": "a\ud800b"}, None)
    assert "a\\ud800b" in answer["error"]
    json.dumps(answer, ensure_ascii=False).encode()

# SPDX-License-Identifier: Apache-2.0
"""Inputs of flow runs: a value under a key, in the run's own log.

An input is one record, ``{"k": "input", "key": …, "value": …, "at": µs}``, plain JSON, with ``sender`` if somebody
signed it. ``deleted`` takes a key away. ``pause`` marks what belongs to a pause: the schema and the description of what
it asks for stand in the line that pauses the run, the response in the line that lets it go on, so nobody finds a pause
without its schema, or a resumed run without its answer. What belongs to pauses ends with the attempt: a flow that is
retried asks anew, and an old answer never answers a new question.

A run takes inputs whether it runs or has ended, from any process that shares the home.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from .._json_schema import BrokenSchema, problems_of
from .._plain_json import plain
from .._waits import now_us, to_datetime
from ..exceptions import ObjectAlreadyExists, ObjectNotFound
from .live import Answer
from .news import News

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from datetime import datetime
    from uuid import UUID

    from .._waits import Waits
    from ..states import State
    from .fold import Run
    from .live import LiveRun
    from .orchestration import SyncClient

    Bodies = list[dict[str, Any]]


class FlowRunInput:
    """One input as it stands in the log."""

    __slots__ = ("_created", "flow_run_id", "key", "sender", "value")

    def __init__(self, flow_run_id: UUID, body: dict[str, Any]) -> None:
        self.flow_run_id = flow_run_id
        self.key: str = body["key"]
        #: the value as JSON text
        self.value: str = json.dumps(body["value"])
        self.sender: str | None = body.get("sender")
        self._created: int = body["at"]

    @property
    def created(self) -> datetime | None:
        """When it was given."""
        return to_datetime(self._created)

    @property
    def decoded_value(self) -> Any:
        """The value."""
        return json.loads(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FlowRunInput) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def __repr__(self) -> str:
        return f"FlowRunInput(key={self.key!r}, value={self.value}, sender={self.sender!r})"


# ---------------------------------------------------------------------------------------------- records


def input_record(key: str, value: Any, sender: str | None = None, *, pause: bool = False) -> dict[str, Any]:
    """The record of an input. ValueError when the value cannot be written as plain JSON."""
    record: dict[str, Any] = {"k": "input", "key": key, "value": plain(value, strict=True), "at": now_us()}
    if sender is not None:
        record["sender"] = sender
    if pause:
        record["pause"] = True
    return record


def keyset_of(state: State[Any]) -> dict[str, str]:
    """The keys under which what a pause asks for, and the answer, stand: those of the state itself if it has some."""
    keyset: dict[str, str] | None = state.state_details.run_input_keyset
    if keyset is not None:
        return keyset
    return keyset_of_key(f"{state.name.lower()}-{state.state_details.pause_key}")


def keyset_of_key(base_key: str) -> dict[str, str]:
    """The keys that begin with `base_key`."""
    return {what: f"{base_key}-{what}" for what in ("description", "response", "schema")}


def question_records(keyset: dict[str, str], schema: dict[str, Any], description: str | None) -> Bodies:
    """What goes into the line that pauses a run and asks for input."""
    records = [input_record(keyset["schema"], schema, pause=True)]
    if description is not None:
        records.append(input_record(keyset["description"], description, pause=True))
    return records


def answer_records(run: Run, paused: State[Any], run_input: dict[str, Any] | None) -> Bodies:
    """What goes into the line that lets a run go on: the response to what its pause asks for. Empty when it asks for
    nothing, whatever is given, and when nothing is given where nothing has to be.

    RuntimeError, which names the field, when the answer does not fit the schema of the pause, or there is no
    schema."""
    keyset = paused.state_details.run_input_keyset
    if keyset is None:
        return []
    question = run.inputs.get(keyset.get("schema", ""))
    if question is None:
        raise RuntimeError(f"Cannot resume this run: flow run {run.run_id} has lost the schema of what it asks for.")
    try:
        record = input_record(keyset["response"], {} if run_input is None else run_input, pause=True)
        problems = problems_of(question["value"], record["value"])
    except BrokenSchema as problem:
        raise RuntimeError(f"Cannot resume this run: flow run {run.run_id}: {problem}") from problem
    except ValueError as problem:
        raise RuntimeError(f"Cannot resume this run: what was given is no plain JSON: {problem}") from problem
    if problems:
        reasons = [
            f"Validation failed for field {'.'.join(map(str, place))!r}. Failure reason: {reason}"
            for place, reason in problems
        ]
        raise RuntimeError(f"Cannot resume this run: {'; '.join(reasons)}")
    return [record] if run_input is not None else []


def response_to(run: Run, keyset: dict[str, str]) -> dict[str, Any] | None:
    """What was answered; None when nothing was, because nothing had to be."""
    found = run.inputs.get(keyset["response"])
    value = None if found is None else found["value"]
    return value if isinstance(value, dict) else None


# ------------------------------------------------------------------------------------- for any run, by its id


def create_input(client: SyncClient, flow_run_id: UUID | str, key: str, value: Any, sender: str | None) -> None:
    """Give a run an input. ObjectAlreadyExists when there is one under the key, ObjectNotFound for an unknown run."""
    body = input_record(key, value, sender)

    def decision(live: LiveRun) -> Bodies:
        if key in live.run.inputs:
            raise ObjectAlreadyExists(f"flow run {live.run_id} has an input under the key {key!r} already")
        return [body]

    _append(client, flow_run_id, decision)


def delete_input(client: SyncClient, flow_run_id: UUID | str, key: str) -> None:
    """Take an input away. ObjectNotFound when there is none under the key."""

    def decision(live: LiveRun) -> Bodies:
        if key not in live.run.inputs:
            raise ObjectNotFound(f"flow run {live.run_id} has no input under the key {key!r}")
        return [{"k": "input", "key": key, "deleted": True}]

    _append(client, flow_run_id, decision)


def _append(client: SyncClient, flow_run_id: UUID | str, decision: Any) -> None:
    """Precedes the return to whoever gives or takes the input; dying before it, nothing happened."""
    with client.addressed(flow_run_id) as live:
        live.decide(lambda: (Answer(Answer.ACCEPT, live.flow_run.state), decision(live)))


def read_input(client: SyncClient, flow_run_id: UUID | str, key: str) -> FlowRunInput | None:
    """The input under a key; None when there is none."""
    run = client.fold(str(flow_run_id))
    found = run.inputs.get(key)
    return None if found is None else FlowRunInput(run.flow_run.id, found)


def filter_inputs(
    client: SyncClient, flow_run_id: UUID | str, key_prefix: str, limit: int | None, exclude_keys: Iterable[str]
) -> list[FlowRunInput]:
    """The inputs whose key begins so, the oldest first, at most `limit`."""
    run, excluded = client.fold(str(flow_run_id)), set(exclude_keys)
    return _fitting(run, key_prefix, excluded)[:limit]


def _fitting(run: Run, key_prefix: str, excluded: Container[str]) -> list[FlowRunInput]:
    found = [body for key, body in run.inputs.items() if key.startswith(key_prefix) and key not in excluded]
    return [FlowRunInput(run.flow_run.id, body) for body in found]


async def next_input(
    client: SyncClient,
    flow_run_id: UUID | str,
    key_prefix: str,
    excluded: Container[str],
    waits: Waits,
    timeout: float | None,
) -> FlowRunInput:
    """The oldest input whose key begins so, once there is one. TimeoutError when that takes longer than `timeout`
    seconds; 0 looks once."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with client.addressed(flow_run_id) as live, News([live]) as news:
        while True:
            live.refresh()
            found = _fitting(live.run, key_prefix, excluded)
            if found:
                return found[0]
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(
                    f"flow run {live.run_id} was given no input {key_prefix!r} within {timeout} seconds"
                )
            await news.next(waits, deadline)

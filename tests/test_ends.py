# SPDX-License-Identifier: Apache-2.0
"""The ends of a log: a listing reads no more of a run that has ended, and shows what a reader of the whole sees."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from microflow import _ends, _files, flow, task
from microflow._ends import read_ends
from microflow.client.orchestration import current_client
from microflow.exceptions import MicroflowException
from microflow.flow_runs import rerun
from microflow.states import Cancelled, Completed, Failed, Scheduled, State
from microflow.stores import FileStore
from tests.ends_support import told
from tests.log_support import checksum_of, line, sealed

if TYPE_CHECKING:
    from collections.abc import Callable

    from microflow.client.fold import Run


@task
def double(x: int) -> int:
    return 2 * x


@flow(flow_run_name="doubles of {count}")
def doubles(count: int) -> int:
    return sum(double(x) for x in range(count))


def log_of(count: int = 40) -> Path:
    """The log of a run that completed, several blocks long."""
    state: State[Any] = doubles(count, return_state=True)
    return path_of(state)


def path_of(state: State[Any]) -> Path:
    return Path(current_client().store.location, "runs", f"{state.state_details.flow_run_id}.jsonl")


def heard(read: Callable[[str], tuple[Run, MicroflowException | None]], path: Path) -> Any:
    """What a reader is told of a log, and of what is wrong with it."""
    current_client().store.close(path.stem)
    try:
        run, problem = read(path.stem)
    except MicroflowException as error:
        return type(error), str(error)
    return run.header and told(run), run.position, problem and str(problem)


def alike(path: Path) -> bool:
    """Whether a listing and a reader of the whole are told the same."""
    client = current_client()
    return bool(heard(client.glance, path) == heard(client.fold_what_is_readable, path))


def takes_ends(path: Path) -> bool:
    """Whether the two ends are enough to list the run."""
    data = path.read_bytes()
    return read_ends(path.stem, data[: _ends.BLOCK], data[-_ends.BLOCK :]) is not None


# ------------------------------------------------------------------------------------------------- what is read


def test_a_run_that_has_ended_is_listed_from_two_blocks_of_its_log(monkeypatch):
    path = log_of(200)
    read: list[int] = []
    real = _files.read_at

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        data = real(descriptor, length, offset)
        read.append(len(data))
        return data

    current_client().store.close(path.stem)
    monkeypatch.setattr(_files, "read_at", counted)
    (run,) = current_client().read_flow_runs()
    assert (run.state_name, run.name) == ("Completed", "doubles of 200")
    assert sum(read) == 2 * _ends.BLOCK < path.stat().st_size / 10


def test_a_short_log_is_read_as_a_whole():
    path = log_of(1)
    assert path.stat().st_size <= _ends.BLOCK
    assert current_client().store.read_ends(path.stem) is None
    assert alike(path)


def test_stores_that_cannot_tell_the_ends_read_the_whole(monkeypatch):
    monkeypatch.setattr(FileStore, "read_ends", lambda self, run_id: None)
    assert alike(log_of())


# ----------------------------------------------------------------------------------------------- what they say


OUTCOMES: dict[str, Callable[[], State[Any]]] = {
    "COMPLETED": lambda: Completed(message="done"),
    "FAILED": lambda: Failed(message="no"),
    "CANCELLED": lambda: Cancelled(message="enough"),
}


@pytest.mark.parametrize("kind", OUTCOMES)
def test_whatever_a_run_went_through_its_ends_say_what_it_came_to(kind):
    """Here a retry: two attempts, of which the time in between is not counted."""
    attempts = []

    @flow(retries=1, retry_delay_seconds=0.01)
    def second_time() -> State[Any]:
        for x in range(40):
            double(x)
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("the first time")
        return OUTCOMES[kind]()

    path = path_of(second_time(return_state=True))
    assert takes_ends(path)
    assert alike(path)
    (run,) = current_client().read_flow_runs()
    assert (run.run_count, run.attempt, run.state_type) == (len(attempts), len(attempts) - 1, kind)
    assert timedelta(0) < run.total_run_time <= run.end_time - run.start_time - timedelta(milliseconds=10)


def test_a_run_that_was_created_for_others_to_run_is_listed_from_its_ends():
    """Nobody owned it when its first line was written, and it was to start at another moment than it did."""
    client = current_client()
    due = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    created = client.create_flow_run(doubles, parameters={"count": 40}, state=Scheduled(scheduled_time=due))
    assert rerun(doubles, created.id).is_completed()
    path = Path(client.store.location, "runs", f"{created.id}.jsonl")
    assert takes_ends(path)
    assert alike(path)
    (run,) = client.read_flow_runs()
    assert (run.expected_start_time, run.state_name, run.name) == (due, "Completed", "doubles of 40")


def test_a_run_that_never_ran_is_listed_from_its_ends():
    """It was refused its parameters, which are more than a block."""
    path = path_of(doubles("x" * 9000, return_state=True))
    assert alike(path)
    (run,) = current_client().read_flow_runs()
    assert (run.run_count, run.state_name, run.start_time) == (0, "Failed", run.end_time)


def test_a_run_that_was_started_again_is_listed_by_its_last_end():
    """The claim that followed the first end is in the middle then, and so is that end."""
    broken = [True]

    @flow
    def mended() -> int:
        for x in range(40):
            double(x)
        if broken:
            raise ValueError("broken")
        return 1

    state: State[Any] = mended(return_state=True)
    path = path_of(state)
    first = heard(current_client().glance, path)
    broken.clear()
    rerun(mended, path.stem, force=True)
    assert heard(current_client().glance, path) != first
    assert takes_ends(path)
    assert alike(path)


def test_a_run_that_does_not_run_any_more_and_has_no_end_is_read_as_a_whole():
    """Its process may have died: what readers derive from that they derive from all that is there."""
    path = log_of()
    *lines, _ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines))
    assert takes_ends(path)
    assert alike(path)
    (run,) = current_client().read_flow_runs()
    assert run.state_name == "Crashed"


def test_every_prefix_of_a_log_is_listed_as_it_is_read(monkeypatch):
    path = log_of(4)
    monkeypatch.setattr(_ends, "BLOCK", 800)
    data = path.read_bytes()
    for length in {*range(0, len(data), 7), *range(len(data) - 300, len(data) + 1)}:
        path.write_bytes(data[:length])
        assert alike(path), length


# ------------------------------------------------------------------------------------------- what is not in order


def follows(lines: list[bytes], *bodies: dict[str, Any], position: int = 0, epoch: int | None = 1) -> bytes:
    return line(len(lines) + position, checksum_of(lines[-1]), bodies, epoch)


def again(encoded: bytes, **changes: bytes) -> bytes:
    """The line with other bytes, and a checksum that fits them."""
    text = encoded[:-17]
    for before, after in changes.items():
        assert before.encode() in text
        text = text.replace(before.encode(), after)
    return sealed(text) + b"\n"


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a torn tail": lambda lines: [*lines, b'{"q":'],
    "a sealed tail": lambda lines: [*lines, b'{"q":\n'],
    "zeros": lambda lines: [*lines, b"\0" * 512],
    "a line once more": lambda lines: [*lines, lines[-1]],
    "an old line once more": lambda lines: [*lines, lines[-2]],
    "an orphan": lambda lines: [*lines, line(len(lines) - 1, checksum_of(lines[-2]), [{"k": "note"}], 1)],
    "an orphaned end": lambda lines: [*lines[:-1], follows(lines[:-1], {"k": "note"}), lines[-1]],
    "a request": lambda lines: [*lines, follows(lines, {"k": "note"}, epoch=None)],
    "a claim": lambda lines: [*lines, follows(lines, {"k": "claim", "owner": "c" * 32, "pid": 1}, epoch=2)],
    "a release": lambda lines: [*lines, follows(lines, {"k": "release"})],
    "a line that is too new": lambda lines: [
        *lines,
        again(follows(lines, {"k": "hologram", "o": 1}), **{',"o":1': b""}),
    ],
    "a line with news that may be skipped": lambda lines: [*lines, follows(lines, {"k": "hologram", "o": 1})],
    "a void line": lambda lines: [*lines, follows(lines, {"k": "note"}, epoch=0)],
    "a gap": lambda lines: [*lines, follows(lines, {"k": "note"}, position=1)],
    "a missing line before the last": lambda lines: [*lines[:-2], lines[-1]],
    "a damaged last line": lambda lines: [*lines[:-1], lines[-1].replace(b"COMPLETED", b"COMPLETEF")],
    "a damaged line before the last": lambda lines: [*lines[:-2], lines[-2].replace(b"state", b"statf"), lines[-1]],
    "a damaged first line": lambda lines: [lines[0].replace(b"PENDING", b"PENDINH"), *lines[1:]],
    "no first line": lambda lines: lines[1:],
    "the first line alone": lambda lines: lines[:1],
    "books of another type": lambda lines: [*lines[:-1], again(lines[-1], **{'"runs":1': b'"runs":"1"'})],
    "books with more in them": lambda lines: [*lines[:-1], again(lines[-1], **{'"runs"': b'"x":1,"runs"'})],
    "no books": lambda lines: [*lines[:-1], again(lines[-1], **{'"books"': b'"cooks"'})],
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_in_order_at_an_end_is_seen_by_a_listing_too(name):
    path = log_of()
    lines = path.read_bytes().splitlines(keepends=True)
    changed = b"".join(CHANGES[name](lines))
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    assert alike(path)


def test_another_runs_log_under_this_name_is_no_log_of_this_run():
    first, second = log_of(), log_of()
    second.write_bytes(first.read_bytes())
    assert not takes_ends(second)
    assert alike(second)


def test_damage_between_the_ends_is_seen_by_all_but_listings():
    """A listing says how the run ended; who reads the run itself is told what is wrong."""
    path = log_of()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[20] = lines[20].replace(b"state", b"statf")
    path.write_bytes(b"".join(lines))
    client = current_client()
    assert [run.state_name for run in client.read_flow_runs()] == ["Completed"]
    with pytest.raises(MicroflowException, match="damaged at line 21"):
        client.read_flow_run(path.stem)

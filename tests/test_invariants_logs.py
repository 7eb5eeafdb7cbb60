# SPDX-License-Identifier: Apache-2.0
"""The invariants about what is left of a run: cut-off logs (I11) and re-execution (I13)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from microflow import flow, task
from microflow.client.orchestration import SyncClient, current_client
from microflow.exceptions import ObjectNotFound
from microflow.flow_runs import rerun
from microflow.flows import load_flow_from_entrypoint
from microflow.stores import FileStore

from .invariants_support import (
    both_homes,
    home_fixture,  # noqa: F401 - autouse, named home
    only_run,
    published_fixture,  # noqa: F401 - named published
)
from .kill_support import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from microflow.events import Record
    from microflow.states import State


# ------------------------------------------------------------------------------------------------ I11


@contextmanager
def observed(published: list[Any]) -> Iterator[list[Record]]:
    """All records that are published meanwhile."""
    records: list[Record] = []
    published.append(records.append)
    yield records
    published.remove(records.append)


def histories(records: list[Record], run_id: str) -> list[dict[str, tuple[Any, ...]]]:
    """What each run of a log was in after each line, as the bus told it: independent of the fold."""
    lines: dict[int, list[Record]] = {}
    for record in records:
        if record.run_id == run_id:
            lines.setdefault(record.position, []).append(record)
    moments, present = [], {}
    for position in sorted(lines):
        for record in lines[position]:
            if record.kind == "state":
                kind = record.data["type"]
                name, message = record.data.get("name", kind.capitalize()), record.data.get("message")
                present[record.subject] = (kind, name, message, record.data["at"])
            elif record.kind == "task" and "at" in record.data:
                present[record.subject] = ("PENDING", "Pending", None, record.data["at"])
        moments.append(dict(present))
    assert sorted(lines) == list(range(len(lines)))
    return moments


def told(state: State[Any] | None) -> tuple[Any, ...]:
    assert state is not None
    return state.type.value, state.name, state.message, state.at


@pytest.mark.parametrize("which", ["blocking", "async"])
def test_I11_every_byte_prefix_of_a_log_opens_to_a_state_that_the_run_was_in(which, published):
    """Broken if a cut-off line counted, if records of one line could be seen alone, or if what was read depended on
    what comes later. A reader may derive CRASHED, for the owner is dead."""

    @task(retries=1)
    def work(n: int) -> int:
        if n == 2 and not failed:
            failed.append(1)
            raise ValueError("once")
        if n == 3:
            raise KeyError("always")
        return n

    @task
    async def later(n: int) -> int:
        return n

    @flow(retries=1)
    def blocking() -> None:
        work(1)
        futures = [work.submit(2), work.submit(3)]
        for future in futures:
            future.wait()
        if len(failed) == 1:
            failed.append(2)
            raise ValueError("again")

    @flow
    async def coroutine() -> None:
        await asyncio.gather(later(1), later(2))
        raise ValueError("in the end")

    failed: list[int] = []
    with observed(published) as records:
        state = blocking(return_state=True) if which == "blocking" else asyncio.run(coroutine(return_state=True))
    store = current_client().store
    run_id = str(state.state_details.flow_run_id)
    moments = histories(records, run_id)
    path = Path(store.location, "runs", f"{run_id}.jsonl")
    data = path.read_bytes()
    assert len(moments) == data.count(b"\n") > 5
    found: dict[int, list[int]] = {}
    for length in range(len(data), -1, -1):
        os.truncate(path, length)
        client = SyncClient(FileStore(store.location))
        whole = data.count(b"\n", 0, length)
        if not whole:
            with pytest.raises(ObjectNotFound):
                client.fold(run_id)
            continue
        run = client.fold(run_id)
        was = moments[whole - 1]
        assert told(run.flow_run.state) == was[run_id]
        counts = [len(history.states) for history in run.tasks.values()]
        if counts != found.setdefault(whole, counts) or length in (len(data), data.rfind(b"\n", 0, length) + 1):
            assert counts == found[whole]
            tasks = {key: told(run.task_run(key).state) for key in run.tasks}
            assert tasks == {key: value for key, value in was.items() if key != run_id}
        seen = run.seen(client.is_alive(run))
        assert seen is run.flow_run.state or (seen is not None and seen.is_crashed() and run.owner is not None)


# ------------------------------------------------------------------------------------------------ I13

KILLED_PROGRAM = '''
"""A flow that kills its process when the file `kill` says so: after so many bodies were begun."""
import asyncio, os
from microflow import flow, task


def begun(witness, name):
    with open(witness, "a") as file:
        file.write(name + "\\n")
    with open(witness) as file:
        bodies = len(file.readlines())
    if os.path.exists(witness + ".kill") and bodies >= int(open(witness + ".kill").read()):
        os.kill(os.getpid(), 9)


@task
def work(witness, n):
    begun(witness, f"work {n}")
    return n * 10


@task
async def later(witness, n):
    begun(witness, f"work {n}")
    return n * 10


@flow
def child(witness, n):
    return work(witness, n)


@flow
def blocking(witness):
    first = work(witness, 1)
    mapped = work.map(witness, [2, 3, 2])
    return first + sum(mapped.result()) + child(witness, 4) + work(witness, 5)


@flow
async def coroutine(witness):
    first = await later(witness, 1)
    more = [later.submit(witness, n) for n in (2, 3, 2)]
    return first + sum([await future for future in more]) + await later(witness, 4) + await later(witness, 5)


if __name__ == "__main__":
    import sys

    value = globals()[sys.argv[1]](sys.argv[2])
    print(asyncio.run(value) if asyncio.iscoroutine(value) else value)
'''
BODIES = sorted(["work 1", "work 2", "work 3", "work 2", "work 4", "work 5"])


def completed_calls(run_id: str) -> int:
    """How many task calls of a run, and of its subflow if there is one, ended with a kept result in their logs."""
    client = current_client()
    return sum(
        task_run.state_type == "COMPLETED"
        for run in [run_id, *(other for other in client.store.list() if other != run_id)]
        for task_run in client.read_task_runs(flow_run_id=run)
        if task_run.task_key.startswith(("work", "later"))
    )


@pytest.mark.parametrize("name", ["blocking", "coroutine"])
@pytest.mark.parametrize("bodies", [2, 5, 6])
def test_I13_a_logged_completion_is_not_executed_again_after_a_kill(name, bodies, tmp_path, monkeypatch):
    """Broken if a call were not recognised: its body would leave a second line in the witness file."""
    program, witness = tmp_path / "program.py", tmp_path / "witness"
    program.write_text(KILLED_PROGRAM)
    kill = Path(f"{witness}.kill")
    kill.write_text(str(bodies))
    command = [sys.executable, program, name, witness]
    killed = subprocess.run(command, env=environment(), capture_output=True, timeout=60)
    assert killed.returncode == -9, killed.stderr
    before = witness.read_text().splitlines()
    (run_id,) = [str(run.id) for run in current_client().read_flow_runs(flow_names=[name])]
    assert current_client().read_flow_run(run_id).state_type == "CRASHED"
    ended = completed_calls(run_id)
    kill.unlink()

    again = rerun(load_flow_from_entrypoint(f"{program}:{name}"), run_id)
    state = asyncio.run(again) if name == "coroutine" else again
    assert state.result(_sync=True) == 170
    after = witness.read_text().splitlines()[len(before) :]
    assert len(after) == len(BODIES) - ended  # what was not logged as ended, and nothing else
    last = current_client().store.read(run_id).records[-1]
    assert (last.kind, last.data.get("handed_back", 0) > 0) == ("release", ended > 0)


@both_homes
def test_I13_what_is_handed_back_is_not_appended_again(home):
    """Broken if a re-execution wrote the states of ended calls anew: logs would grow with each resume."""

    @task
    def work(n: int) -> int:
        executed.append(n)
        return n

    @flow
    def main() -> None:
        work.map(range(20)).wait()
        if len(executed) == 20 and not again:
            again.append(1)
            raise KeyboardInterrupt

    executed: list[int] = []
    again: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        main()
    run = only_run("main")
    store = current_client().store
    before = store.read(str(run.id)).records
    assert rerun(main, run.id, force=True).is_completed()
    added = store.read(str(run.id)).records[len(before) :]
    assert [record.kind for record in added] == ["claim", "state", "state", "state", "release"]
    assert added[-1].data["handed_back"] == 20
    assert sorted(executed) == list(range(20))

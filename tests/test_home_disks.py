# SPDX-License-Identifier: Apache-2.0
"""Homes on real file systems that are full, read-only or not there, each in a mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .kill_support import PATIENCE, cli, command, environment, logs, records
from .lambda_support import check_that_namespaces_work

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")

READ_ONLY = 'mount --bind "$PLACE" "$PLACE" && mount -o remount,ro,bind "$PLACE" && exec "$@"'
SMALL = 'mount -t tmpfs -o size=2m,mode=700 tmpfs "$MICROFLOW_HOME" && exec "$@"'

STEPS = """
import asyncio, os
from microflow import flow, task

@task
def step(n, size):
    with open("executed", "a") as file:
        file.write(f"{n}\\n")
    return os.urandom(size // 2).hex()  # does not shrink when it is packed

@flow
def steps(size: int, count: int):
    return sum(len(step(n, size)) for n in range(count))

@flow
def mapped(size: int, count: int):
    return sum(map(len, step.map(range(count), size).result()))

@flow
async def gathered(size: int, count: int):
    return sum(map(len, await asyncio.gather(*(asyncio.to_thread(step, n, size) for n in range(count)))))

@flow
def nested(size: int, count: int):
    return steps(size, count)
"""

FILL = """
import asyncio, os, subprocess, sys
import steps
from microflow.client.orchestration import SyncClient, current_client
from microflow.exceptions import NoSpace
from microflow.stores import FileStore

home, body, (size, count, free) = os.environ["MICROFLOW_HOME"], getattr(steps, sys.argv[1]), map(int, sys.argv[2:])
filler = os.path.join(home, "filler")
with open(filler, "wb") as file:
    file.write(b"x" * ((2 << 20) - free))
try:
    running = body(size, count)
    if body.isasync:
        asyncio.run(running)
except NoSpace as error:
    assert home in str(error) and "free space and try again" in str(error), error
else:
    raise AssertionError("the disk is not full")

def look():
    "How often calls were executed, and how many have ended. None ends without its result."
    store = FileStore(home)  # as another process would see it
    records = [record for each in store.list() for record in store.read(each).check().records]
    completed = [record.data for record in records if record.data.get("type") == "COMPLETED"]
    kept = sum("result" in data for data in completed)
    assert kept == len(completed), (kept, completed)
    return len(open("executed").read().split()), kept

run_id = FileStore(home).list()[0]
executed, ended = look()
alone = body in (steps.steps, steps.nested)
assert 0 < ended < count and executed - ended in range(2 if alone else count), (ended, executed)
run = [sys.executable, "-m", "microflow"]
shown = subprocess.run([*run, "ls"], capture_output=True, text=True)
assert shown.returncode == 0 and run_id in shown.stdout and "Failed" not in shown.stdout, shown
assert subprocess.run([*run, "show", run_id], capture_output=True).returncode == 0
full = subprocess.run([*run, "resume", run_id], capture_output=True, text=True)
assert full.returncode == 7 and "space" in full.stderr, full

executed, ended_then = look()
assert ended_then >= ended, "what was recorded stays"
os.unlink(filler)
resumed = subprocess.run([*run, "resume", run_id], capture_output=True)
assert resumed.returncode == 0, resumed
state = SyncClient(FileStore(home)).read_flow_run(run_id).state
assert state.result() == size * count
again = open("executed").read().split()
assert sorted(set(map(int, again))) == list(range(count)), "all were executed"
assert not alone or len(again) <= count + 2, "and those alone again that were interrupted, twice"
assert len(again) == executed + count - ended_then, ("what had ended is handed back", again)
print("resumed")
"""


def inside(mounts: str, *words: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command where these file systems are mounted, and nobody else sees them."""
    check_that_namespaces_work()
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount --make-rprivate / && {mounts}", "sh", *words],
        cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip


@pytest.fixture
def program(tmp_path: Path) -> Path:
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "steps.py").write_text(STEPS)
    (folder / "fill.py").write_text(FILL)
    return folder


@pytest.mark.parametrize(
    ("body", "size", "count", "free"),
    [("steps", 400, 150, 60_000), *((body, 20_000, 60, 300_000) for body in ("steps", "mapped", "gathered", "nested"))],
    ids=["where the log itself grows", "where results are files", "in threads", "on a loop", "in a subflow"],
)
@pytest.mark.parametrize("durability", ["process", "disk"])
def test_a_full_disk_stops_the_run_with_a_typed_error_and_room_lets_it_go_on(
    program, private_home, body, size, count, free, durability
):
    """What is recorded as completed has its result, and is not executed again."""
    private_home.mkdir(exist_ok=True)
    words = [sys.executable, "fill.py", body, str(size), str(count), str(free)]
    done = inside(SMALL, *words, cwd=program, MICROFLOW_DURABILITY=durability)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("resumed\n")
    assert list(private_home.iterdir()) == [], "all of it was on the small disk"


def test_a_home_on_a_read_only_disk_can_be_looked_at_and_a_run_there_is_refused(program, private_home):
    done = cli("run", "steps.py:steps", "--param", "size=3", "--param", "count=2", cwd=program)
    assert done.returncode == 0, done.stderr
    (log,) = logs(private_home)
    before = log.read_bytes()
    for look in (["ls"], ["show", log.stem]):
        done = inside(READ_ONLY, *command(*look), cwd=program, PLACE=str(private_home))
        assert done.returncode == 0, done.stderr
        assert log.stem in done.stdout
        assert "Completed" in done.stdout or "COMPLETED" in done.stdout
    for act in (["run", "steps.py:steps", "--param", "size=3", "--param", "count=2"], ["resume", log.stem]):
        done = inside(READ_ONLY, *command(*act), cwd=program, PLACE=str(private_home))
        assert done.returncode == 7, done.stdout
        assert f"the home {private_home} cannot be used: it cannot be written" in done.stderr
    assert logs(private_home) == [log]
    assert log.read_bytes() == before
    assert (program / "executed").read_text().split() == ["0", "1"]


READ = """
import asyncio, sys
from microflow import get_client
from microflow.exceptions import ConfigurationError, StorageError
from steps import steps

run_id = sys.argv[1]
client = get_client(sync_client=True)

async def main():
    async with get_client() as coroutines:
        return await coroutines.read_flow_run(run_id)

assert [str(run.id) for run in client.read_flow_runs()] == [run_id]
assert client.read_flow_run(run_id) == asyncio.run(main())
assert client.read_flow_run(run_id).state.result() == 4
assert [run.state.name for run in client.read_task_runs(flow_run_id=run_id)] == ["Completed"] * 2
assert len(client.read_flow_run_states(run_id)) == 3
for write in (lambda: client.create_flow_run(steps), lambda: client.delete_flow_run(run_id), lambda: steps(3, 2)):
    try:
        write()
    except (ConfigurationError, StorageError) as error:
        print(type(error).__name__)
"""


def test_a_program_reads_a_home_on_a_read_only_disk_and_what_would_write_is_refused(program, private_home):
    assert cli("run", "steps.py:steps", "--param", "size=3", "--param", "count=2", cwd=program).returncode == 0
    (log,) = logs(private_home)
    before = log.read_bytes()
    done = inside(READ_ONLY, sys.executable, "-c", READ, log.stem, cwd=program, PLACE=str(private_home))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["StorageError", "StorageError", "ConfigurationError"]
    assert log.read_bytes() == before


def test_the_default_home_on_a_read_only_disk_is_looked_at_and_runs_go_to_the_temporary_folder(program, tmp_path):
    user = tmp_path / "user"
    (user / ".microflow").mkdir(parents=True, mode=0o700)
    (tmp_path / "tmp").mkdir()
    settings = {"MICROFLOW_HOME": "", "HOME": str(user), "PLACE": str(user), "TMPDIR": str(tmp_path / "tmp")}
    run = ["run", "steps.py:steps", "--param", "size=3", "--param", "count=2"]
    assert cli(*run, cwd=program, **settings).returncode == 0
    (old,) = logs(user / ".microflow")
    assert old.stem in inside(READ_ONLY, *command("ls"), cwd=program, **settings).stdout
    done = inside(READ_ONLY, *command(*run), cwd=program, **settings)
    assert done.returncode == 0, done.stderr
    assert "may not outlive a reboot" in done.stderr
    (new,) = logs(tmp_path / "tmp" / f"microflow-{os.getuid()}")
    assert new.stem != old.stem
    assert records(new)


def test_a_flow_runs_where_there_is_no_home_at_all_and_in_memory_nothing_is_made(program, tmp_path):
    (tmp_path / "tmp").mkdir()
    settings = {"HOME": str(tmp_path / "absent"), "TMPDIR": str(tmp_path / "tmp")}
    run = ["run", "steps.py:steps", "--param", "size=3", "--param", "count=2"]
    done = cli(*run, cwd=program, MICROFLOW_HOME=":memory:", **settings)
    assert done.returncode == 0, done.stderr
    assert "reboot" not in done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
    done = cli(*run, cwd=program, MICROFLOW_HOME="", **settings)
    assert done.returncode == 0, done.stderr
    assert "may not outlive a reboot" in done.stderr
    assert len(logs(tmp_path / "tmp" / f"microflow-{os.getuid()}")) == 1
    assert not (tmp_path / "absent").exists()

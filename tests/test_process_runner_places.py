# SPDX-License-Identifier: Apache-2.0
"""Where a process runner must work and what it must survive: no /dev/shm, scripts of every shape, its owner's death."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import microflow
from microflow import flow
from microflow.client.orchestration import current_client
from microflow.exceptions import ConfigurationError
from microflow.flow_engine import run_flow
from microflow.task_runners import ProcessPoolTaskRunner
from tests import remote_tasks as remote
from tests.behaviour_support import pins
from tests.kill_support import PATIENCE, environment
from tests.support import death_after, flow_run_ids, fold, task_ids, task_states

SCRIPT = """\
import sys
from dataclasses import dataclass
from microflow import flow, get_run_logger, task
from microflow.task_runners import ProcessPoolTaskRunner

@dataclass
class Point:
    x: int

class Plain:
    def __init__(self, x):
        self.x = x

class NoPoint(Exception):
    pass

@task
def shift(point, plain):
    print("shifting", __name__ == "__main__")
    return Point(point.x + 1), Plain(plain.x + 1)

@task
def refuse():
    raise NoPoint("none")

@flow(task_runner=ProcessPoolTaskRunner(1, start_method=START))
def points():
    point, plain = shift.submit(Point(1), Plain(2)).result()
    assert type(point) is Point and type(plain) is Plain, (type(point), type(plain))
    assert type(refuse.submit().result(raise_on_failure=False)) is NoPoint
    return point.x + plain.x
"""
GUARDED = SCRIPT + 'if __name__ == "__main__":\n    print(points())\n'
UNGUARDED = SCRIPT + "print(points())\n"


def run_script(path: Path, *words: str, prefix: tuple[str, ...] = (), **changes: str) -> Any:
    command = [*prefix, sys.executable, *(words or (str(path),))]
    return subprocess.run(
        command, env=environment(**changes), capture_output=True, text=True, timeout=PATIENCE, cwd=path.parent
    )


@pytest.fixture(params=["forkserver", "spawn", "fork"])
def script(request, tmp_path):
    """Writes a script that starts its workers in one of the ways."""

    def write(source: str) -> Path:
        path = tmp_path / "points_script.py"
        path.write_text(source.replace("START", repr(request.param)))
        return path

    write.method = request.param  # type: ignore[attr-defined]
    return write


class TestScripts:
    def test_functions_classes_and_exceptions_of_the_main_program_work(self, script):
        done = run_script(script(GUARDED))
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["shifting", str(script.method == "fork"), "5"]

    def test_so_they_do_with_python_m(self, script):
        path = script(GUARDED)
        done = run_script(path, "-m", path.stem)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == "5"

    def test_the_flow_may_stand_below_the_guard_and_a_task_there_is_told_the_cure(self, script):
        below = """\
if __name__ == "__main__":
    @task
    def late():
        return "late"

    @flow(task_runner=ProcessPoolTaskRunner(1, start_method=START))
    def below():
        shifted = shift.submit(Point(1), Plain(2)).result()[0].x
        return shifted, late.submit().result(raise_on_failure=False)

    print(below())
"""
        done = run_script(script(SCRIPT + below))
        assert done.returncode == 0, done.stderr
        if script.method == "fork":
            assert done.stdout.endswith("(2, 'late')\n")
        else:
            assert "(2, MissingFlowError" in done.stdout
            assert "is not found in a worker" in done.stdout
            assert "define the task above it, at the top level" in done.stdout

    def test_a_script_without_guard_is_told_so_and_starts_nothing_twice(self, script):
        done = run_script(script(UNGUARDED))
        if script.method == "fork":  # nothing is imported again
            assert done.returncode == 0, done.stderr
            return
        assert done.returncode == 1
        assert "starts a flow or task while a worker process imports it" in done.stderr
        assert 'below `if __name__ == "__main__":`' in done.stderr
        assert len(flow_run_ids()) == 1, "no worker has started the flow again"


def test_a_copy_under_another_name_in_a_zip_file_works(script, tmp_path):
    """Workers import the package that started them, wherever it is."""
    archive = tmp_path / "copies.zip"
    package = Path(microflow.__file__).parent
    with zipfile.ZipFile(archive, "w") as file:
        for path in package.rglob("*.py"):
            file.write(path, f"elsewhere/{path.relative_to(package)}")
    source = GUARDED.replace("microflow", "elsewhere")
    done = run_script(script(source), PYTHONPATH=str(archive))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "5"


class TestWithoutSharedMemory:
    PROBE = "import multiprocessing as m\ntry:\n    m.Lock()\nexcept OSError:\n    print('no locks', flush=True)\n"

    @pytest.mark.skipif(sys.platform != "linux", reason="others have no /dev/shm that could be taken away")
    def test_tasks_run_where_dev_shm_cannot_be_written(self, script):
        """As in AWS Lambda. That multiprocessing's locks fail there proves that it is gone."""
        prefix = ("unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-c")
        mount = ('mount -t tmpfs -o ro,size=4k none /dev/shm && exec "$@"', "sh")
        done = run_script(script(self.PROBE + GUARDED), prefix=(*prefix, *mount))
        assert done.returncode == 0, done.stderr
        lines = done.stdout.split("\n")
        assert lines[0] == "no locks"
        assert "5" in lines

    def test_multiprocessing_is_loaded_nowhere(self, script):
        names = ("multiprocessing", "multiprocessing.synchronize", "_multiprocessing")
        source = (
            "import sys\nfrom microflow.task_runners import ProcessPoolTaskRunner\nfrom tests import remote_tasks\n"
            f"with ProcessPoolTaskRunner(1, start_method={script.method!r}) as runner:\n"
            f"    there = runner.submit(remote_tasks.modules_loaded, {{'names': {names!r}}}).result()\n"
            f"print(there, [name for name in {names!r} if name in sys.modules])\n"
        )
        done = run_script(script(source))
        assert done.stdout == "[] []\n", done.stderr


class TestReexecution:
    def test_i13_calls_that_a_task_made_in_a_worker_are_handed_back_after_a_death(self, tmp_path):
        """I13: at every append the owner dies; what was reported as completed is not executed again."""
        appends = 3
        while self.dies_after(appends, tmp_path / str(appends)):
            appends += 1
        assert appends > 6

    def dies_after(self, appends: int, folder: Path) -> bool:
        """Whether there were so many appends to die after."""
        folder.mkdir()
        task, mark = remote.parent_that_fails_once.with_options(retries=1), folder.with_suffix(".mark")

        @flow(task_runner=ProcessPoolTaskRunner(1), name=f"dies after {appends}")
        def made():
            return task.submit(str(folder), str(mark)).result()

        with death_after(appends) as death:
            made()
        if not death.came:
            return False
        (run_id,) = flow_run_ids(made.name)
        before, failed_once = len(list(folder.iterdir())), mark.exists()
        logged = sum(states[-1] == "Completed" for states in task_states("counted", run_id))
        assert run_flow(made, parameters={}, live=current_client().claim(run_id)) == 3
        again = len(list(folder.iterdir())) - before
        assert again == (2 - min(2, logged) if failed_once else 4), f"after {appends} appends {logged} were logged"
        return True

    def test_results_too_big_for_a_line_come_back_as_files(self, private_home):
        @flow(task_runner=ProcessPoolTaskRunner(1))
        def outer():
            return remote.parent_with_big_child.submit().result()

        assert outer() == 50_000
        (child,) = task_ids("big_text")
        assert len(fold().task_states(child)[-1].read_result()) == 50_000
        assert len(list(private_home.rglob("*.results/*"))) == 1


class TestContextInAWorker:
    def run(self, body: Any, **options: Any) -> Any:
        return flow(task_runner=ProcessPoolTaskRunner(1), name="outer", **options)(body)()

    @pytest.mark.parametrize("of_flow", [False, True])
    def test_prints_are_logged_for_who_asks(self, caplog, of_flow):
        printers = [(remote.printing, "one"), (remote.printing_as_its_flow_says, "two")]
        with caplog.at_level(logging.INFO, logger="microflow"):
            self.run(
                lambda: [each.submit(text).result() for each, text in printers],
                log_prints=of_flow,
            )
        printed = [record.getMessage() for record in caplog.records if record.getMessage() in ("one", "two")]
        assert printed == (["one", "two"] if of_flow else ["one"])

    def test_a_task_elsewhere_cannot_pause_its_flow_run_and_is_told_so(self):
        def body():
            with pytest.raises(ConfigurationError, match="in another process cannot pause"):
                remote.pause_here.submit().result()
            return 1

        assert self.run(body) == 1

    @pins("futures_runners", 82)
    def test_what_happens_in_a_worker_is_published_once(self):
        client = current_client()
        seen: list[Any] = []

        def body():
            end = client.store.bus.subscribe_log(str(fold().flow_run.id), seen.append)
            remote.parent_of.submit(1).result()
            end()

        self.run(body)
        ends = [record.data["run"] for record in seen if record.kind == "state" and record.data["type"] == "COMPLETED"]
        assert len(ends) == len(set(ends)) == 5

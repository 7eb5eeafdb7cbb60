# SPDX-License-Identifier: Apache-2.0
"""Under Pyodide, where no thread, no process and no lock on files exists: the package as it is, under Node.

The ``pyodide`` package is installed by npm on the first run. Where there is no Node there is no Pyodide to test.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYODIDE = "pyodide@314.0.7"

PROGRAM = """
import json, os, sys
sys.path.insert(0, "/checkout")
os.environ["MICROFLOW_HOME"] = WHERE
from microflow import flow, task, get_client
from microflow.cli import main as command

attempts = []

@task(retries=2)
def square(number):
    attempts.append(number)
    if number == 3 and attempts.count(3) < 3:
        raise ValueError("again")
    return number * number

@task
async def double(number):
    return 2 * number

@flow
def blocking():
    return square(2), square.submit(5).result(), square.map([1, 2, 3]).result()

@flow
async def coroutine():
    future = double.submit(4)
    return await double(3), await future

answers = {"blocking": blocking(), "coroutine": await coroutine(), "attempts": attempts.count(3)}
runs = get_client(sync_client=True).read_flow_runs()
answers["shown"] = [command(["show", str(run.id), "--json"]) for run in runs]
answers["listed"] = command(["ls"])
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture(scope="module")
def pyodide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ``pyodide`` package is, installed once for a checkout."""
    if shutil.which("node") is None:
        pytest.skip("no Node on this machine, so there is no Pyodide either")
    folder = ROOT / "build" / "pyodide"
    module = folder / "node_modules" / "pyodide" / "pyodide.mjs"
    if not module.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        done = subprocess.run(["npm", "install", PYODIDE], cwd=folder, capture_output=True, text=True, timeout=240)
        assert module.exists(), done.stderr
    return module


def answers(pyodide: Path, program: str, folder: Path) -> dict[str, object]:
    file = folder / "program.py"
    file.write_text(program)
    command: list[str | Path] = ["node", ROOT / "tests" / "pyodide_program.mjs", pyodide, ROOT, file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.partition("ANSWERS")[2])
    return found


@pytest.mark.parametrize("home", ["/tmp/home", ":memory:"])
def test_flows_tasks_submit_map_retries_and_show_work_without_threads(home, pyodide, tmp_path):
    assert answers(pyodide, PROGRAM.replace("WHERE", repr(home)), tmp_path) == {
        "blocking": [4, 25, [1, 4, 9]],
        "coroutine": [6, 8],
        "attempts": 3,
        "shown": [0, 0],
        "listed": 0,
    }

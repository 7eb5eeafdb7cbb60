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

PAUSES = """
import asyncio, json, os, sys
sys.path.insert(0, "/checkout")
os.environ["MICROFLOW_HOME"] = WHERE
from microflow import flow, get_client, pause_flow_run, resume_flow_run, task
from microflow.flow_runs import wait_for_flow_run
from microflow.input import receive_input, send_input

client = get_client(sync_client=True)
seen = []

@task(retries=1, retry_delay_seconds=0.01)
def rounded(number):
    seen.append(number)
    if len(seen) == 1:
        raise ValueError("again")
    return round(number)

@flow
async def ask(name):
    size = await pause_flow_run(wait_for_input=float, timeout=60)
    async for who in receive_input(str, timeout=60):
        break
    return f"{who}: {rounded(size)} for {name}"

@flow
def blocking():
    pause_flow_run()

async def paused_run():
    while True:
        for run in client.read_flow_runs():
            if run.state.is_paused():
                return run.id
        await asyncio.sleep(0.01)

async def operator():
    run_id = await paused_run()
    try:
        await resume_flow_run(run_id, {"value": "no number"})
    except RuntimeError as refused:
        seen.append(str(refused).count("no number"))
        seen.clear()
    await resume_flow_run(run_id, {"value": 2.7})
    await send_input("Ada", run_id)
    return (await wait_for_flow_run(run_id)).state.name

running = asyncio.ensure_future(ask("tea"))
answers = {"state": await operator(), "result": await running, "tries": len(seen)}
answers["tasks left"] = len(asyncio.all_tasks()) - 1
try:
    blocking()
except RuntimeError as refused:
    answers["blocking"] = "make it a coroutine and await" in str(refused)
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


@pytest.mark.parametrize("home", ["/tmp/home", ":memory:"])
def test_a_coroutine_flow_pauses_for_input_that_another_coroutine_sends(home, pyodide, tmp_path):
    """The loop hears of what is sent, where no thread could; a blocking pause would stop the page, and is refused."""
    assert answers(pyodide, PAUSES.replace("WHERE", repr(home)), tmp_path) == {
        "state": "Completed",
        "result": "Ada: 3 for tea",
        "tries": 2,
        "tasks left": 0,
        "blocking": True,
    }

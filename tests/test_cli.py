# SPDX-License-Identifier: Apache-2.0
"""The command line as its users meet it: real processes, their streams and exit statuses."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.kill_support import cli, command, digest, document, end, environment, logs, records, start, wait_until

if TYPE_CHECKING:
    from pathlib import Path

KEYS = ["id", "name", "flow_name", "state_type", "state_name", "message", "result"]

SCRIPT = r'''
import os, subprocess, sys, time
from microflow import flow, suspend_flow_run, task
from microflow.states import Cancelled, Paused

print("the script is loaded")

def witness(line):
    with open(os.environ["WITNESS"], "a") as file:
        file.write(line + "\n")

@task
def add_one(x):
    return x + 1

@flow
def noisy(x: int = 1):
    print("printed")
    os.system("echo by a child")
    subprocess.run([sys.executable, "-c", "print('by a python child')"])
    os.write(1, b"by descriptor 1\n")
    return add_one(x)

@flow
async def coroutine(x=1):
    print("printed")
    return await add_one.submit(x)

@flow
def items(x=1):
    for number in range(x):
        yield add_one(number)
    return x + 1

@flow
async def coroutine_items(x=1):
    for number in range(x):
        yield add_one(number)

@flow
def broken_items():
    yield add_one(1)
    raise ValueError("no good")

@flow
def suspended_items():
    yield add_one(1)
    suspend_flow_run()
    yield add_one(2)

@flow
def fails():
    add_one(1)
    raise ValueError("no good")

@flow
def exits():
    sys.exit(5)

@flow
def cancels():
    return Cancelled(message="enough")

@flow
def pauses():
    return Paused()

@flow
def odd_result():
    return {"when", (1, 2)}

@flow
def waits():
    add_one(1)
    witness("waiting")
    while not os.path.exists(os.environ["WITNESS"] + ".go"):
        time.sleep(0.005)

@task
def kept(x):
    witness(f"kept {x}")
    return x

@task
def repaired():
    witness("repaired")
    if not os.path.exists(os.environ["WITNESS"] + ".repaired"):
        raise RuntimeError("out of order")
    return "in order"

@flow
def mended():
    return [kept(1), repaired(), kept(2)]

@task
def slow(n):
    time.sleep(0.02)
    return n

@flow
def many():
    return sum(slow.map(range(30)).result())

@flow(name="red \x1b[31m\x07", flow_run_name="title \x1b]0;x\x07\nnext \u202e")
def evil():
    raise ValueError("\x1b[2Jcleared\u202e\r")
'''


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script with the flows; its witness file is ``witness`` beside it."""
    monkeypatch.setenv("WITNESS", str(tmp_path / "witness"))
    path = tmp_path / "flows.py"
    path.write_text(SCRIPT)
    return path


def run_id_of(home: Path) -> str:
    (log,) = logs(home)
    return log.stem


# --------------------------------------------------------------------------------------------------------- run


@pytest.mark.parametrize("name", ["noisy", "coroutine"])
def test_run_with_json_prints_one_document_and_nothing_else(script, private_home, name):
    done = cli("run", f"{script}:{name}", "--param", "x=41", "--json")
    report = document(done)
    assert list(report) == KEYS
    assert report == {
        "id": run_id_of(private_home),
        "name": report["name"],
        "flow_name": name,
        "state_type": "COMPLETED",
        "state_name": "Completed",
        "message": None,
        "result": 42,
    }
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("name", "status", "state"),
    [("items", 0, "Completed"), ("coroutine_items", 0, "Completed"), ("broken_items", 1, "Failed")],
)
def test_run_consumes_the_items_of_a_generator_flow(script, private_home, name, status, state):
    given = ["--param", "x=3"] if status == 0 else []
    done = cli("run", f"{script}:{name}", *given, "--json")
    report = document(done)
    assert (done.returncode, report["state_name"]) == (status, state)
    assert report["result"] == (4 if name == "items" else None), "what it returns; an async one returns nothing"


def test_a_generator_flow_that_was_suspended_goes_on_from_its_log(script, private_home):
    assert cli("run", f"{script}:suspended_items").returncode == 3
    done = cli("resume", run_id_of(private_home))
    assert done.returncode == 0
    assert "1 handed back" in done.stderr


def test_with_json_whatever_a_flow_prints_goes_to_standard_error(script):
    """Prints, children and writes to descriptor 1, also while the script is loaded, and while it is resumed."""
    done = cli("run", f"{script}:noisy", "--json")
    printed = {"the script is loaded", "printed", "by a child", "by a python child", "by descriptor 1"}
    assert printed <= set(done.stderr.splitlines())
    assert done.stdout.count("\n") == 1


def test_run_without_json_leaves_the_flows_output_where_it_goes(script, private_home):
    done = cli("run", f"{script}:noisy")
    *printed, run, result = done.stdout.splitlines()
    assert {"printed", "by a child", "by a python child", "by descriptor 1"} <= set(printed)
    assert run.split() == [run_id_of(private_home), "noisy", "Completed()"]
    assert result == "result: 2"


@pytest.mark.parametrize(
    ("name", "status", "state_type", "message"),
    [
        ("noisy", 0, "COMPLETED", None),
        ("fails", 1, "FAILED", "Flow run encountered an exception: ValueError: no good"),
        ("exits", 1, "CRASHED", "Execution was aborted by a system exit call."),
        ("cancels", 1, "CANCELLED", "enough"),
        ("pauses", 3, "PAUSED", None),
    ],
)
def test_the_exit_status_tells_how_the_run_ended(script, name, status, state_type, message):
    """`show` reports the same, but exits 0: it did what it was asked to do."""
    done = cli("run", f"{script}:{name}", "--json")
    assert done.returncode == status, done.stderr
    report = document(done)
    assert (report["state_type"], report["message"]) == (state_type, message)
    shown = cli("show", report["id"], "--json")
    assert (shown.returncode, document(shown)) == (0, report)


def test_ctrl_c_is_recorded_and_the_way_on_is_told(script, private_home, tmp_path):
    process = start("run", f"{script}:waits", "--json")
    assert wait_until((tmp_path / "witness").exists, process)
    process.send_signal(signal.SIGINT)
    done = end(process)
    assert done.returncode == 1
    report = document(done)
    assert report["state_type"] == "CRASHED"
    assert f"python -m microflow resume {report['id']}" in done.stderr
    (tmp_path / "witness.go").touch()
    assert cli("resume", report["id"]).returncode == 0


def test_a_module_is_a_target_too(script, private_home):
    done = cli("run", "flows:noisy", "--json", cwd=script.parent)
    assert document(done)["result"] == 2
    assert cli("resume", run_id_of(private_home), cwd=script.parent.parent).returncode == 0  # completed: not loaded


def test_a_result_that_is_not_plain_json_is_shown_in_its_plain_form(script, private_home):
    report = document(cli("run", f"{script}:odd_result", "--json"))
    assert sorted(report["result"], key=str) == [[1, 2], "when"]
    assert document(cli("show", report["id"], "--json"))["result"] == report["result"]


# ---------------------------------------------------------------------------------------------------- progress


def test_progress_is_plain_lines_when_piped(script):
    done = cli("run", f"{script}:many")
    *_, last = done.stderr.splitlines()
    assert re.fullmatch(r"many: 30 done, 0 running, 0 failed, 0 left, \d+\.\d s", last)
    assert not re.search(r"[\r\x1b]", done.stderr)


def test_progress_is_one_line_drawn_anew_on_a_terminal(script):
    """What is drawn counts up to the whole; each drawing starts at the left margin of the same line."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command("run", f"{script}:many"), env=environment(), stdout=subprocess.DEVNULL, stderr=slave
    )
    os.close(slave)
    shown = b""
    try:
        while data := os.read(master, 4096):
            shown += data
    except OSError:  # EIO: the other side is closed
        pass
    finally:
        os.close(master)
    assert process.wait(timeout=30) == 0
    first, *drawings = shown.decode().split("\r\x1b[K")
    assert first == ""
    assert len(drawings) > 1
    assert re.fullmatch(r"30 done, 0 running, 0 failed, 0 left, \d+\.\d s\r\n", drawings[-1])
    assert all("\n" not in drawing for drawing in drawings[:-1])
    counts = [[int(number) for number in re.findall(r"(\d+) \w+,", drawing)] for drawing in drawings]
    assert [done for done, *_ in counts] == sorted(done for done, *_ in counts)
    assert {sum(count) for count in counts} == {30}


def test_the_progress_of_a_resumed_run_counts_what_was_handed_back(script, tmp_path):
    report = document(cli("run", f"{script}:mended", "--json"))
    (tmp_path / "witness.repaired").touch()
    done = cli("resume", report["id"])
    assert "mended: 2 done, 0 running, 0 failed, 0 left, 1 handed back" in done.stderr


# ------------------------------------------------------------------------------------------------- ls and show


def test_ls_lists_each_run_on_a_line_and_as_json(script):
    assert document(cli("ls", "--json")) == []
    reports = [document(cli("run", f"{script}:{name}", "--json")) for name in ("noisy", "fails")]
    assert document(cli("ls", "--json")) == reports
    header, *rows = cli("ls").stdout.splitlines()
    assert header.split() == ["ID", "STATE", "FLOW", "NAME", "STARTED", "SECONDS"]
    assert [row.split()[:4] for row in rows] == [
        [report["id"], report["state_name"], report["flow_name"], report["name"]] for report in reports
    ]


def test_ls_and_show_change_nothing(script, private_home):
    cli("ls")
    assert digest(private_home) == {}
    cli("run", f"{script}:noisy")
    before = digest(private_home)
    cli("ls")
    cli("show", run_id_of(private_home))
    assert digest(private_home) == before


def test_ls_ends_quietly_when_its_reader_has_gone(script):
    cli("run", f"{script}:noisy")
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(command("ls"), env=environment(), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


def test_show_names_what_went_wrong_task_by_task(script, private_home):
    cli("run", f"{script}:mended")
    shown = cli("show", run_id_of(private_home)).stdout
    assert "flow        mended, " in shown
    assert "state       Failed (FAILED)" in shown
    assert "task runs   2: 1 Completed, 1 Failed" in shown
    assert "Failed('Task run encountered an exception: RuntimeError: out of order')" in shown


def test_a_live_run_is_shown_as_running_with_its_process(script, private_home, tmp_path):
    process = start("run", f"{script}:waits")
    assert wait_until((tmp_path / "witness").exists, process)
    (report,) = document(cli("ls", "--json"))
    assert report["state_type"] == "RUNNING"
    assert f"owner       process {process.pid} on " in cli("show", report["id"]).stdout
    end(process, kill=True)
    (report,) = document(cli("ls", "--json"))
    assert (report["state_type"], report["message"].split(" on ")[0]) == ("CRASHED", f"Its process (pid {process.pid}")


def test_an_id_may_be_shortened_to_a_beginning_that_fits_one_run(script, private_home):
    first = document(cli("run", f"{script}:noisy", "--json"))["id"]
    assert document(cli("show", first[:1], "--json"))["id"] == first
    assert document(cli("show", first.upper(), "--json"))["id"] == first
    second = document(cli("run", f"{script}:noisy", "--json"))["id"]
    common = first[: next(place for place in range(36) if first[place] != second[place])]
    refused = cli("show", common)
    assert refused.returncode == 2
    assert first in refused.stderr
    assert second in refused.stderr
    assert document(cli("show", second[: len(common) + 1], "--json"))["id"] == second


# ------------------------------------------------------------------------------------------------------ resume


def test_resume_of_a_failed_run_drops_the_failures_and_keeps_the_completions(script, private_home, tmp_path):
    failed = document(cli("run", f"{script}:mended", "--json"))
    assert failed["state_type"] == "FAILED"
    (tmp_path / "witness.repaired").touch()
    done = cli("resume", failed["id"], "--json")
    report = document(done)
    assert (done.returncode, list(report)) == (0, KEYS)
    assert (report["id"], report["result"]) == (failed["id"], [1, "in order", 2])
    assert (tmp_path / "witness").read_text().split("\n") == ["kept 1", "repaired", "repaired", "kept 2", ""]


def test_resume_of_a_failed_run_is_recorded_as_an_operators_word(script, private_home):
    failed = document(cli("run", f"{script}:mended", "--json"))
    assert cli("resume", failed["id"]).returncode == 1
    again = records(logs(private_home)[0])
    claim = max(number for number, record in enumerate(again) if record["k"] == "claim")
    assert again[claim]["forced"] is True
    assert (again[claim + 1]["name"], again[claim + 1]["message"]) == ("Resuming", "Started again by an operator.")


def test_resume_of_a_completed_run_runs_nothing_and_reports_it(script, private_home):
    report = document(cli("run", f"{script}:noisy", "--json"))
    before = digest(private_home)
    done = cli("resume", report["id"], "--json")
    assert (done.returncode, document(done)) == (0, report)
    assert "nothing was run" in done.stderr
    assert "the script is loaded" not in done.stderr
    assert digest(private_home) == before


def test_resume_finds_the_script_from_another_folder(script, private_home, tmp_path):
    process = start("run", script.name + ":waits", cwd=script.parent)
    assert wait_until((tmp_path / "witness").exists, process)
    end(process, kill=True)
    (tmp_path / "witness.go").touch()
    assert cli("resume", run_id_of(private_home), cwd=private_home).returncode == 0


def test_code_names_a_script_that_has_moved(script, private_home, tmp_path):
    run_id = document(cli("run", f"{script}:mended", "--json"))["id"]
    moved = script.rename(tmp_path / "moved.py")
    (tmp_path / "witness.repaired").touch()
    before = digest(private_home)
    lost = cli("resume", run_id)
    assert lost.returncode == 2
    assert str(script) in lost.stderr
    wrong = cli("resume", run_id, "--code", f"{moved}:noisy")
    assert wrong.returncode == 2
    assert "is a run of flow 'mended', but the code names 'noisy'" in wrong.stderr
    assert digest(private_home) == before
    assert document(cli("resume", run_id, "--code", f"{moved}:mended", "--json"))["result"] == [1, "in order", 2]


def test_code_that_a_home_open_to_others_names_is_not_imported(script, private_home, tmp_path):
    """Others could have written it there. The operator's own --code is taken."""
    run_id = document(cli("run", f"{script}:mended", "--json"))["id"]
    (tmp_path / "witness.repaired").touch()
    private_home.chmod(0o777)
    before = digest(private_home)
    refused = cli("resume", run_id)
    assert refused.returncode == 2
    assert f"--code {script}:mended" in refused.stderr
    assert "the script is loaded" not in refused.stdout + refused.stderr
    assert digest(private_home) == before
    assert cli("resume", run_id, "--code", f"{script}:mended").returncode == 0


def test_a_home_that_others_can_only_read_is_trusted(script, private_home, tmp_path):
    run_id = document(cli("run", f"{script}:mended", "--json"))["id"]
    (tmp_path / "witness.repaired").touch()
    private_home.chmod(0o755)
    assert cli("resume", run_id).returncode == 0


# ---------------------------------------------------------------------------------------------------------- gc


def test_gc_deletes_the_runs_that_ended_so_long_ago_and_no_others(script, private_home, tmp_path):
    """What can still be resumed is kept, however old it is; so is what is running."""
    old = document(cli("run", f"{script}:noisy", "--json"))
    process = start("run", f"{script}:waits")
    assert wait_until((tmp_path / "witness").exists, process)
    end(process, kill=True)
    (tmp_path / "witness").unlink()
    running = start("run", f"{script}:waits")
    assert wait_until((tmp_path / "witness").exists, running)
    assert document(cli("gc", "--older-than", "1d", "--json")) == []
    ended = time.time()
    assert wait_until(lambda: time.time() - ended > 0.1)  # an age is counted from now, so now must move on
    deleted = document(cli("gc", "--older-than", "0.1s", "--json"))
    assert deleted == [old]
    left = document(cli("ls", "--json"))
    assert [report["state_type"] for report in left] == ["CRASHED", "RUNNING"]
    assert cli("gc", "--older-than", "0s").stdout == "deleted 0 flow run(s)\n"
    (tmp_path / "witness.go").touch()
    assert end(running).returncode == 0


def test_gc_takes_the_result_files_along(script, private_home, tmp_path):
    path = tmp_path / "large.py"
    path.write_text("from microflow import flow\n@flow\ndef large():\n    return 'x' * 50_000\n")
    cli("run", f"{path}:large")
    assert list((private_home / "runs").glob("*.results/*"))
    assert cli("gc", "--older-than", "0s").stdout == "deleted 1 flow run(s)\n"
    assert list((private_home / "runs").iterdir()) == []


# ---------------------------------------------------------------------------------------------- harmless output


@pytest.mark.parametrize("arguments", [("run",), ("run", "--log-level", "debug"), ("resume",), ("show",), ("ls",)])
def test_names_and_messages_cannot_steer_a_terminal_or_forge_a_line(script, private_home, arguments):
    """Control and invisible characters of names, messages and exceptions are printed as escapes."""
    first = cli("run", f"{script}:evil")
    name, *options = arguments
    where = {"run": [f"{script}:evil"], "ls": []}.get(name, [run_id_of(private_home)])
    for done in (first, cli(name, *where, *options)):
        printed = done.stdout + done.stderr
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", printed)
        assert r"\x1b[31m\x07" in printed
        assert not any(line.startswith("next") for line in printed.splitlines())


def test_json_escapes_what_is_not_ascii(script):
    done = cli("run", f"{script}:evil", "--json")
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["flow_name"] == "red \x1b[31m\x07"

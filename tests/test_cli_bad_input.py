# SPDX-License-Identifier: Apache-2.0
"""Bad input on the command line: one clear line that names the culprit and the cure, the right exit status, and a
home in which nothing was recorded or changed."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.kill_support import cli, digest, document, logs, records

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

WRONG_USE, DAMAGED, TOO_NEW, STORAGE = 2, 4, 5, 7

SCRIPT = """
from microflow import flow, task

number = 3

def plain():
    return 1

@task
def some_task():
    return 1

@flow
def some_flow(x: int, y=2):
    return x

class Holder:
    pass
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "flows.py"
    path.write_text(SCRIPT)
    (tmp_path / "raising.py").write_text("raise RuntimeError('not today')\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "exiting.py").write_text("import sys\nsys.exit(0)\n")
    return path


def one_line(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """The process ended with that status, printed nothing, and said one line that holds all of these words."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("microflow: ")
    for word in words:
        assert word in line


# --------------------------------------------------------------------------------------------- targets, parameters


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("absent.py:f", ["absent.py", "Give the path of a script"]),
        ("absent_module:f", ["there is no module 'absent_module'", "Modules are looked for in"]),
        ("flows.py", ["no object in it", "write flows.py:name"]),
        ("flows", ["no entrypoint", "write path.py:name, or module:name"]),
        ("flows.py:some_flwo", ["'some_flwo'", "Did you mean some_flow?"]),
        ("flows.py:Holder.run", ["'run'", "Holder"]),
        ("flows.py:number", ["int", "decorated with @flow"]),
        ("flows.py:plain", ["function", "decorated with @flow"]),
        ("flows.py:some_task", ["Task", "decorated with @flow"]),
        ("raising.py:f", ["raising.py", "RuntimeError: not today"]),
        ("broken.py:f", ["broken.py", "SyntaxError"]),
        ("exiting.py:f", ["exiting.py", "SystemExit"]),
        (":f", ["''", "no module name"]),
        ("", ["no entrypoint"]),
    ],
)
def test_a_target_that_is_no_flow_is_named_with_the_cure(script, private_home, target, words):
    one_line(cli("run", target, cwd=script.parent), WRONG_USE, *words)
    assert digest(private_home) == {}


def test_with_json_an_error_is_the_same_line_and_no_document(script):
    one_line(cli("run", "flows.py:plain", "--json", cwd=script.parent), WRONG_USE, "decorated with @flow")
    one_line(cli("show", "zz", "--json"), WRONG_USE, "'zz'")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (["x"], ["'x'", "has no '='", "NAME=JSON"]),
        (["x=one"], ["x=one is not JSON", "a text needs quotes", """--param 'x="one"'"""]),
        (["x=[1"], ["x=[1 is not JSON"]),
        (["x="], ["x= is not JSON"]),
        (["x=NaN"], ["x=NaN is not JSON", "a text needs quotes"]),
        (["x=" + "[" * 100_000], ["is not JSON"]),
        (["x=" + "9" * 50_000], ["is not JSON", "50000 digits"]),
        (["x=1e999"], ["x=1e999 is not JSON", "too large"]),
        (['x={"a": 1, "a": 2}'], ["is not JSON", "stands twice"]),
        (["x=1 2"], ["is not JSON", "follows"]),
        (["x=1", "x=2"], ["--param x is given twice"]),
        (['x="one"'], ["invalid parameters", "x: must be an integer, got 'one' (str)"]),
        (["x=[[[[1]]]]"], ["invalid parameters", "x: must be an integer"]),
        (["x=1", "z=1"], ["'some-flow' has no parameter 'z'", "x, y"]),
        ([], ["missing a required argument: 'x'"]),
    ],
)
def test_a_parameter_that_is_no_json_or_not_in_the_signature_is_named(script, private_home, parameters, words):
    given = [word for parameter in parameters for word in ("--param", parameter)]
    one_line(cli("run", f"{script}:some_flow", *given), WRONG_USE, *words)
    assert digest(private_home) == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["required: COMMAND"]),
        (["jump"], ["'jump'"]),
        (["run"], ["required: TARGET"]),
        (["show"], ["required: RUN"]),
        (["ls", "extra"], ["unrecognized arguments: extra"]),
        (["ls", "--log-level", "loud"], ["'loud'", "warning"]),
        (["gc"], ["required: --older-than"]),
        (["gc", "--older-than", "3y"], ["'3y'", "s, m, h, d, w", "30d"]),
        (["gc", "--older-than", "d"], ["'d'", "30d"]),
        (["gc", "--older-than=-3d"], ["'-3d'", "out of range"]),
        (["gc", "--older-than", "nand"], ["'nand'", "out of range"]),
    ],
)
def test_wrong_use_is_said_in_one_line(private_home, arguments, words):
    one_line(cli(*arguments), WRONG_USE, *words)
    assert digest(private_home) == {}


# ------------------------------------------------------------------------------------------------------ run ids


@pytest.mark.parametrize("name", ["show", "resume"])
@pytest.mark.parametrize("given", ["zz", "", "../../etc/passwd", "0" * 40, "%"])
def test_an_unknown_run_is_named_with_the_home(script, private_home, name, given):
    """Also one without a letter: no beginning fits every run by accident."""
    cli("run", f"{script}:some_flow", "--param", "x=1")
    before = digest(private_home)
    one_line(cli(name, given), WRONG_USE, f"begins with {given!r}", str(private_home))
    assert digest(private_home) == before


@pytest.mark.parametrize("name", ["show", "resume"])
def test_an_ambiguous_run_is_named_with_its_candidates(script, private_home, name):
    for _ in range(2):
        cli("run", f"{script}:some_flow", "--param", "x=1")
    before = digest(private_home)
    first, second = (log.stem for log in logs(private_home))
    one_line(cli(name, first[0]), WRONG_USE, "fits 2 flow runs", first, second, "give more of the id")
    assert digest(private_home) == before


# ---------------------------------------------------------------------------------------------------- the home


@pytest.mark.parametrize("place", ["a file", "below a file", "/proc/microflow"])
def test_a_home_that_cannot_be_written_is_a_storage_failure(script, tmp_path, place):
    """Permission bits would not stop root, which tests may run as: these places stop everybody."""
    file = tmp_path / "file"
    file.write_text("here")
    home = {"a file": str(file), "below a file": str(file / "home")}.get(place, place)
    before = digest(tmp_path)
    one_line(cli("run", f"{script}:some_flow", "--param", "x=1", MICROFLOW_HOME=home), STORAGE, home)
    after = digest(tmp_path)
    assert {name: value for name, value in after.items() if "__pycache__" not in name} == before


@pytest.mark.parametrize("name", ["MICROFLOW_DURABILITY", "MICROFLOW_KEEP_RESULTS"])
def test_a_setting_that_cannot_be_read_is_named(private_home, name):
    one_line(cli("ls", **{name: "perhaps"}), WRONG_USE, name, "'perhaps'", "accepted is")


# ------------------------------------------------------------------------------------------------------- the log


def completed_run(script: Path, home: Path) -> Path:
    """The log of a new run."""
    before = set(logs(home))
    assert cli("run", f"{script}:some_flow", "--param", "x=1").returncode == 0
    (log,) = set(logs(home)) - before
    return log


def reseal(line: bytes) -> bytes:
    """The line with a checksum that fits what it says now."""
    body = line[:-16]
    return b'%b,"c":"%08x"}' % (body, zlib.crc32(body))


def make_too_new(log: Path) -> None:
    """Say in the header that reading needs version 2."""
    first, *_ = log.read_bytes().split(b"\n")
    log.write_bytes(reseal(first.replace(b'"reader":1', b'"reader":2')) + b"\n")


def damage_second_line(log: Path) -> None:
    """Flip a bit in the middle of a log that ended otherwise well."""
    lines = log.read_bytes().split(b"\n")
    assert len(lines) > 3
    lines[1] = lines[1].replace(b"RUNNING", b"RUNNINF")
    log.write_bytes(b"\n".join(lines))


def test_a_log_of_a_newer_format_is_not_touched(script, private_home):
    log = completed_run(script, private_home)
    make_too_new(log)
    before = digest(private_home)
    for name in ("show", "resume"):
        one_line(cli(name, log.stem), TOO_NEW, str(log), "format version 2", "use a newer microflow")
    listed = cli("ls", "--json")
    assert (listed.returncode, document(listed)) == (TOO_NEW, [])
    assert cli("gc", "--older-than", "0s").stdout == "deleted 0 flow run(s)\n"
    assert digest(private_home) == before


def test_an_unknown_kind_of_record_makes_a_log_too_new_to_go_on(script, private_home):
    """What stands before it is shown. (A kind that says ``"o":1`` may be skipped.)"""
    log = completed_run(script, private_home)
    lines = log.read_bytes().split(b"\n")
    previous = json.loads(lines[1])["c"]
    strange = json.dumps({"q": 2, "p": previous, "e": 1, "t": 0, "b": [{"k": "hologram"}]}, separators=(",", ":"))
    log.write_bytes(b"\n".join([*lines[:2], reseal(strange[:-1].encode() + b" " * 16), b""]))
    before = digest(private_home)
    shown = cli("show", log.stem, "--json")
    assert (shown.returncode, document(shown)["flow_name"]) == (TOO_NEW, "some-flow")
    assert "'hologram'" in shown.stderr
    one_line(cli("resume", log.stem), TOO_NEW, "'hologram'")
    assert digest(private_home) == before


def test_a_damaged_line_in_the_middle_is_named_by_file_line_and_byte(script, private_home):
    """What stands before it can still be seen; nothing is appended to such a log, and gc keeps it."""
    log = completed_run(script, private_home)
    damage_second_line(log)
    byte = log.read_bytes().index(b"\n") + 1
    where = f"{log} is damaged at line 2 (byte {byte})"
    before = digest(private_home)
    one_line(cli("resume", log.stem), DAMAGED, where, "restore the file")
    shown = cli("show", log.stem, "--json")
    assert shown.returncode == DAMAGED
    assert document(shown)["id"] == log.stem
    assert where in shown.stderr
    assert cli("gc", "--older-than", "0s").stdout == "deleted 0 flow run(s)\n"
    assert digest(private_home) == before


def test_the_damage_of_one_run_leaves_the_others_as_they_are(script, private_home):
    """L20: the others are listed in full, the damaged one as far as it goes, and the status tells."""
    logs_of_runs = [completed_run(script, private_home) for _ in range(3)]
    damage_second_line(logs_of_runs[1])
    listed = cli("ls", "--json")
    assert listed.returncode == DAMAGED
    states = {report["id"]: report["state_type"] for report in document(listed)}
    assert [states.pop(log.stem) for log in (logs_of_runs[0], logs_of_runs[2])] == ["COMPLETED", "COMPLETED"]
    assert len(listed.stderr.splitlines()) == 1
    assert cli("show", logs_of_runs[2].stem).returncode == 0


def test_a_log_whose_creator_was_killed_in_its_first_line_is_no_run(script, private_home):
    log = completed_run(script, private_home)
    first = log.read_bytes().split(b"\n")[0]
    for name, content in (("a" * 8, b""), ("b" * 8, first[:-1])):
        (private_home / "runs" / f"{name}-0000-7000-8000-000000000000.jsonl").write_bytes(content)
        (private_home / "runs" / f"{name}-0000-7000-8000-000000000000.jsonl").chmod(0o600)
    listed = cli("ls", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [report["id"] for report in document(listed)] == [log.stem]
    one_line(cli("resume", "aaaa"), WRONG_USE, "was never created")


def test_a_missing_result_file_is_not_fatal_for_who_only_looks(tmp_path, private_home):
    path = tmp_path / "large.py"
    path.write_text("from microflow import flow\n@flow\ndef large():\n    return 'x' * 50_000\n")
    report = document(cli("run", f"{path}:large", "--json"))
    assert report["result"] == "x" * 50_000
    (result,) = (private_home / "runs").glob("*.results/*")
    result.unlink()
    for name, *where in (("ls",), ("show", report["id"])):
        done = cli(name, *where, "--json")
        assert done.returncode == 0, done.stderr
        assert "<json, 50002 bytes>" in done.stdout


def test_the_parameters_of_a_flow_that_changed_are_refused_before_the_run_is_claimed(tmp_path, private_home):
    path = tmp_path / "changing.py"
    path.write_text("from microflow import flow\n@flow\ndef changing(a):\n    raise ValueError\n")
    run_id = document(cli("run", f"{path}:changing", "--param", "a=1", "--json"))["id"]
    path.write_text("from microflow import flow\n@flow\ndef changing(b):\n    raise ValueError\n")
    before = digest(private_home)
    one_line(cli("resume", run_id), WRONG_USE, run_id, "cannot be run again here", "'b'", "'a'")
    assert digest(private_home) == before
    (log,) = logs(private_home)
    assert [record["k"] for record in records(log)].count("claim") == 1

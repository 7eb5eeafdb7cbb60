# SPDX-License-Identifier: Apache-2.0
"""Vendored copies: made, verified, run under another name, beside each other, from a zip, with Python's bare modes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipapp
import zipfile
from pathlib import Path

import pytest

import microflow
from microflow.cli import main
from microflow.exceptions import ConfigurationError, StorageError
from microflow.ext.vendor import check, vendor

ROOT = Path(__file__).resolve().parent.parent
NAME = "depot._vendor.engine"

PROGRAM = """
from {package} import flow, task, get_client

@task
def square(number):
    return number * number

@flow
def squares(numbers=(1, 2, 3)):
    return sum(square.map(list(numbers)).result())

if __name__ == "__main__":
    print(squares())
"""


def run(*command: str | os.PathLike[str], cwd: Path, **environment: str) -> str:
    """What a command prints; it must succeed and write nothing to standard error."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The folder of a program that holds a copy as ``depot._vendor.engine``."""
    program = tmp_path / "program"
    copy = vendor(program / "depot" / "_vendor", "engine")
    assert copy == program / "depot" / "_vendor" / "engine"
    (program / "depot" / "__init__.py").touch()
    (program / "depot" / "_vendor" / "__init__.py").touch()
    (program / "squares.py").write_text(PROGRAM.format(package=NAME))
    return program


def vendored(program: Path) -> Path:
    return program / "depot" / "_vendor"


# ------------------------------------------------------------------------------------------- making and checking


def test_a_copy_holds_every_module_but_the_examples_with_licence_and_manifest(copy):
    folder = vendored(copy) / "engine"
    package = Path(microflow.__file__).parent
    originals = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.suffix in (".py", ".typed") and "examples" not in path.parts
    }
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == originals | {"LICENSE", "MANIFEST.json"}
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert manifest["log_format"] == 1
    assert set(manifest["files"]) == found - {"MANIFEST.json"}


def test_two_copies_of_one_version_are_equal_byte_by_byte(copy, tmp_path):
    other = vendor(tmp_path / "other", "engine")
    for path in (vendored(copy) / "engine").rglob("*"):
        if path.is_file():
            assert (other / path.relative_to(vendored(copy) / "engine")).read_bytes() == path.read_bytes()


def test_an_unchanged_copy_passes_and_each_kind_of_change_is_named(copy):
    folder = vendored(copy) / "engine"
    assert check(vendored(copy), "engine") == []
    (folder / "states.py").write_text("# edited\n")
    (folder / "events.py").unlink()
    (folder / "more.py").touch()
    assert check(vendored(copy), "engine") == [
        "events.py is missing",
        "more.py is not part of the package",
        "states.py was changed",
    ]


def test_bytecode_of_a_copy_that_was_used_is_no_change(copy):
    run(sys.executable, "squares.py", cwd=copy)
    assert list((vendored(copy) / "engine").rglob("*.pyc"))
    assert check(vendored(copy), "engine") == []


def test_an_unchanged_copy_is_replaced_and_an_edited_one_is_not(copy):
    folder = vendored(copy)
    vendor(folder, "engine")
    (folder / "engine" / "states.py").write_text("# edited\n")
    with pytest.raises(ConfigurationError, match=r"states\.py was changed"):
        vendor(folder, "engine")
    assert (folder / "engine" / "states.py").read_text() == "# edited\n"
    assert sorted(path.name for path in folder.iterdir()) == ["__init__.py", "engine"]


def test_what_is_no_copy_is_not_replaced(tmp_path):
    (tmp_path / "engine").mkdir()
    with pytest.raises(ConfigurationError, match="no vendored copy"):
        vendor(tmp_path, "engine")


def test_a_manifest_that_is_no_manifest_is_a_problem_and_no_traceback(copy):
    (vendored(copy) / "engine" / "MANIFEST.json").write_text("[]")
    assert "cannot be read" in check(vendored(copy), "engine")[0]


@pytest.mark.parametrize("name", ["../engine", "a.b", "class", "", "9lives"])
def test_a_name_that_no_package_can_have_is_refused(name, tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be the name of a package"):
        vendor(tmp_path / "new", name)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file.*No copy was made"):
        vendor(tmp_path / "file", "engine")


def test_the_command_line_copies_checks_and_says_so_in_json(tmp_path, capsys):
    """No home is needed: none is made."""
    assert main(["vendor", str(tmp_path), "--name", "engine"]) == 0
    assert main(["vendor", str(tmp_path), "--name", "engine", "--check"]) == 0
    assert capsys.readouterr().out == f"copied to {tmp_path / 'engine'}\nunchanged\n"
    (tmp_path / "engine" / "LICENSE").unlink()
    assert main(["vendor", str(tmp_path), "--name", "engine", "--check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"problems": ["LICENSE is missing"]}
    assert main(["vendor", str(tmp_path), "--name", "a-b"]) == 2


# ------------------------------------------------------------------------------------------- running a copy


MODES = [["-S", "-E", "-I"], ["-OO"], ["-B"]]


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_a_copy_runs_in_pythons_bare_modes_without_the_original(mode, copy, tmp_path):
    """``-S -E -I``: no site-packages, no environment, no current folder; only the standard library is there."""
    if sys.version_info < (3, 11) and "-S" in mode:
        mode = ["-E"]  # typing_extensions stands in site-packages, and is needed before 3.11
    code = (
        f"import sys; sys.path.insert(0, {str(copy)!r}); from {NAME}.settings import temporary_settings, Settings\n"
        f"import squares\n"
        f"with temporary_settings(home={str(tmp_path / 'h')!r}): print(squares.squares(), 'microflow' in sys.modules)"
    )
    assert run(sys.executable, *mode, "-c", code, cwd=tmp_path) == "14 False"


def test_a_run_of_one_copy_is_shown_and_resumed_by_another(copy, tmp_path):
    """The log names the user's flow, and nothing that depends on the engine's own name."""
    vendor(vendored(copy), "second")
    code = f"import squares\nfrom {NAME} import get_client\nsquares.squares()\n"
    run(sys.executable, "-c", code, cwd=copy)
    (report,) = json.loads(run(sys.executable, "-m", "depot._vendor.second", "ls", "--json", cwd=copy))
    shown = json.loads(
        run(sys.executable, "-m", "depot._vendor.second", "show", report["id"], "--json", cwd=copy)
    )
    assert shown["result"] == 14
    original = json.loads(run(sys.executable, "-m", "microflow", "show", report["id"], "--json", cwd=ROOT))
    assert original["result"] == 14


RESUMED = """
import importlib, os, signal
engine = importlib.import_module(os.environ["ENGINE"])

@engine.task
def square(number):
    with open("executed", "a") as file:
        file.write(f"{number}\\n")
    return number * number

@engine.flow
def squares():
    total = square(2) + square(3)
    if not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return total + square(4)
"""


def test_a_killed_run_of_one_copy_is_resumed_by_another(copy):
    """As by a program that went on to a newer copy under another name; what had ended is handed back."""
    vendor(vendored(copy), "second")
    (copy / "killed.py").write_text(RESUMED)
    command = [sys.executable, "-m", f"{NAME}", "run", "killed.py:squares"]
    done = subprocess.run(command, cwd=copy, env={**os.environ, "ENGINE": NAME}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    second = "depot._vendor.second"
    (report,) = json.loads(run(sys.executable, "-m", second, "ls", "--json", cwd=copy))
    assert report["state_type"] == "CRASHED"
    command = [sys.executable, "-m", second, "resume", report["id"], "--json"]
    done = subprocess.run(command, cwd=copy, env={**os.environ, "ENGINE": second}, capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)["result"]) == (0, 29), done.stderr
    assert (copy / "executed").read_text().split() == ["2", "3", "4"]


def test_two_copies_in_one_process_do_not_disturb_each_other(copy):
    """Contexts, loggers and registries are each copy's own: a flow of the one is no parent of the other's."""
    vendor(vendored(copy), "second")
    (copy / "both.py").write_text(
        "from depot._vendor import engine as a, second as b\n"
        "from depot._vendor.engine.context import FlowRunContext as A\n"
        "from depot._vendor.second.context import FlowRunContext as B\n"
        "@b.flow\n"
        "def inner():\n"
        "    return A.get() is not None, B.get().flow_run.parent_task_run_id\n"
        "@a.flow\n"
        "def outer():\n"
        "    return inner()\n"
        "print(outer(), a.get_run_logger is b.get_run_logger, len(a.get_client(sync_client=True).read_flow_runs()))\n"
    )
    assert run(sys.executable, "both.py", cwd=copy) == "(True, None) False 2"


def test_a_copy_runs_from_a_zip_and_verifies_another_from_there(copy, tmp_path):
    archive = tmp_path / "program.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(copy.rglob("*")):
            if "__pycache__" not in path.parts:
                file.write(path, path.relative_to(copy))
    code = f"import sys; sys.path.insert(0, {str(archive)!r}); import squares; print(squares.squares())"
    assert run(sys.executable, "-c", code, cwd=tmp_path) == "14"
    code = (
        f"import sys; sys.path.insert(0, {str(archive)!r}); from {NAME}.ext.vendor import vendor, check\n"
        f"vendor({str(tmp_path)!r}, 'unpacked'); print(check({str(tmp_path)!r}, 'unpacked'))"
    )
    assert run(sys.executable, "-c", code, cwd=tmp_path) == "[]"
    assert check(tmp_path, "unpacked") == []


def test_a_program_runs_as_a_zipapp(copy, tmp_path):
    (copy / "__main__.py").write_text((copy / "squares.py").read_text())
    zipapp.create_archive(copy, tmp_path / "program.pyz")
    assert run(sys.executable, "program.pyz", cwd=tmp_path) == "14"


# ------------------------------------------------------------------------------------------- importing


AUDIT = """
import sys
seen = []
IMPORT_SYSTEM = {"import", "compile", "exec", "marshal.loads", "os.listdir", "os.scandir"}
LOOKING_AT_FRAMES = {"sys._getframe", "sys._getframemodulename"}
BUILDING_CLASSES = {"code.__new__", "object.__getattr__", "object.__setattr__"}

def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith((".py", ".pyc", ".so")):
        return
    if event not in IMPORT_SYSTEM | LOOKING_AT_FRAMES | BUILDING_CLASSES:
        seen.append(event)

sys.addaudithook(hook)
import PACKAGE
print(seen)
import threading
heavy = {"asyncio", "multiprocessing", "http", "socket", "subprocess", "pickle"}
print(threading.active_count(), sorted(heavy & set(sys.modules)))
"""


def audited(program: str, folder: Path) -> list[str]:
    """What an audit hook saw of a program (PEP 578), and which threads and heavy modules it left."""
    script = folder / "audit.py"
    script.write_text(AUDIT.replace("import PACKAGE", program))
    return run(sys.executable, script, cwd=folder, PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=str(ROOT)).splitlines()


def test_importing_starts_nothing_and_opens_nothing_but_code(tmp_path):
    loaded = [] if sys.version_info >= (3, 11) else ["subprocess"]  # by the uuid module of 3.10, through platform
    assert audited("import microflow; microflow.flow, microflow.task", tmp_path) == ["[]", f"1 {loaded}"]


def test_importing_any_module_starts_nothing_and_opens_nothing_but_code(tmp_path):
    package = Path(microflow.__file__).parent
    paths = [path.relative_to(package).with_suffix("") for path in package.rglob("*.py")]
    dotted = sorted(".".join(path.parts) for path in paths if path.parts[0] != "examples")
    names = [f"microflow.{name}".removesuffix(".__init__") for name in dotted]
    names.remove("microflow.__main__")
    assert len(names) > 100
    program = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    seen, threads = audited(program, tmp_path)
    assert (seen, threads.partition(" ")[0]) == ("[]", "1")


@pytest.mark.parametrize(
    ("program", "event"),
    [
        ("open('audit.txt', 'w').close()", "open"),
        ("import os; os.close(os.open('.', os.O_RDONLY))", "open"),
        ("import socket; socket.socket().close()", "socket.__new__"),
        ("import os; os.mkdir('new')", "os.mkdir"),
    ],
)
def test_the_audit_sees_what_an_import_must_not_do(program, event, tmp_path):
    assert event in audited(program, tmp_path)[0]

# SPDX-License-Identifier: Apache-2.0
"""A script may give objects of its own classes to deferred tasks: a worker finds the script."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.serving_support import ROOT, WorkerProcess

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import sys
from dataclasses import dataclass
from tests.served_tasks import parts_of

class Plain:
    def __init__(self, value):
        self.value = value

@dataclass
class Data:
    value: int

def double(number):
    return 2 * number

if __name__ == "__main__":
    futures = [parts_of.delay(each) for each in (Plain(5), Data(6), [Plain(7)], Plain(double))]
    for future in futures:
        value, back = future.result(timeout=20)
        given = back[0] if isinstance(back, list) else back
        print(value if isinstance(value, int) else value(4), type(given).__module__)
"""


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_worker_makes_objects_of_classes_of_the_script_that_deferred_the_run(tmp_path):
    """The script stands where the worker would not import it from, and gets its own objects back."""
    (tmp_path / "program.py").write_text(SCRIPT)
    with WorkerProcess("tests.served_tasks:parts_of"):
        said = script(tmp_path, "program.py")
    assert said.stdout.split("\n") == ["5 __main__", "6 __main__", "7 __main__", "8 __main__", ""], said.stderr


def test_an_object_of_a_program_that_is_no_file_is_refused_by_name(tmp_path, private_home):
    program = SCRIPT.partition("if __name__")[0] + "parts_of.delay(Plain(1))"
    said = script(tmp_path, "-c", program)
    assert "SerializationError: argument 'thing' of a deferred run of task 'parts_of'" in said.stderr
    assert "defined in a program that is no file. Define it in a module" in said.stderr
    assert not any(path.is_file() for path in private_home.rglob("*")), "nothing was recorded"


def test_a_script_that_defers_while_a_worker_imports_it_is_told_where_that_belongs(tmp_path):
    unguarded = SCRIPT.partition("if __name__")[0] + "print(parts_of.delay(Plain(5)).result(20))"
    (tmp_path / "program.py").write_text(unguarded)
    with WorkerProcess("tests.served_tasks:parts_of"):
        said = script(tmp_path, "program.py")
    assert 'Put what starts it below `if __name__ == "__main__":`' in said.stderr

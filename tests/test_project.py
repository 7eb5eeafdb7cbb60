# SPDX-License-Identifier: Apache-2.0
"""Facts about the project's files that nobody would notice breaking: packaging, README commands, the rules of tests."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import threading
import warnings
from pathlib import Path

import pytest

import microflow
from microflow.log import FORMAT_VERSION
from tests import conftest
from tests.__main__ import CHECKS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["microflow", "tests", "benchmarks", ".ci"]
FILES = [".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"]
LICENCE_LINE = "# SPDX-License-Identifier: Apache-2.0\n"

RUN_THE_CENSUS = (
    "python -m venv .venv && .venv/bin/pip install -q . && "
    ".venv/bin/python -m microflow run microflow/examples/census.py:census"
)
CHECK_EVERYTHING = "python -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/python -m tests"


def source_files() -> list[Path]:
    """The files of the project that people wrote."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [ROOT / name for name in FILES] + [path for path in inside if "__pycache__" not in path.parts]


def pyproject_list(key: str) -> list[str]:
    """A list of pyproject.toml by its key; Python 3.10 has no reader of TOML, and one line needs none."""
    found = re.search(rf"^{key} = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    names = ast.literal_eval(found.group(1))
    assert isinstance(names, list)
    return names


# ---------------------------------------------------------------------------------------------------- packaging


def test_typing_extensions_is_the_one_dependency():
    (dependency,) = pyproject_list("dependencies")
    assert dependency.startswith("typing-extensions>=")


def test_extras_are_for_development_only():
    text = (ROOT / "pyproject.toml").read_text()
    (extras,) = re.findall(r"^\[project\.optional-dependencies\]\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^(\w+) = \[", extras, re.MULTILINE) == ["dev"]


def test_the_version_is_a_literal():
    """The build reads it from the source without importing it, and so may anybody who vendors the folder."""
    (version,) = re.findall(r'^__version__ = "(.*)"$', (ROOT / "microflow/__init__.py").read_text(), re.MULTILINE)
    assert version == microflow.__version__


def test_type_checkers_are_told_that_the_package_is_typed():
    assert (ROOT / "microflow/py.typed").exists()


def test_every_module_names_its_licence_first():
    modules = [path for path in source_files() if path.suffix == ".py"]
    assert modules
    assert [path for path in modules if not path.read_text().startswith(LICENCE_LINE)] == []


def test_no_file_names_a_path_of_somebodys_machine():
    personal = re.compile(r"(?<![\w.])/(?:root|home/\w+|Users/\w+|work)/|\.pyenv\b|[A-Z]:\\\\?Users")
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in source_files()
        for match in personal.finditer(path.read_text(encoding="utf-8"))
        if path != Path(__file__)
    ]
    assert found == []


# ---------------------------------------------------------------------------------------------------- documents


def readme_commands() -> list[str]:
    """The lines of the README's console blocks that are typed by the reader."""
    blocks = re.findall(r"^```console\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_readme_sets_up_with_two_commands():
    assert [line for line in readme_commands() if line.startswith("python -m venv")] == [
        RUN_THE_CENSUS,
        CHECK_EVERYTHING,
    ]


def test_ci_runs_the_second_command_of_the_readme():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "pip install" not in script.read_text(), "the command is read from the README, not said again"
    shown = subprocess.run([script, "--show"], capture_output=True, text=True, timeout=30)
    assert shown.stdout == CHECK_EVERYTHING + "\n"


def test_one_command_runs_every_check_and_the_tests_come_last():
    assert list(CHECKS) == ["lint", "types", "benchmarks", "tests"]


def test_the_changelog_names_the_log_format():
    """A log outlives the program that wrote it: the newest section says which version it writes."""
    newest = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert f"Log format version {FORMAT_VERSION}." in newest


# ---------------------------------------------------------------------------------------------------- the test rules


def test_a_leaked_thread_fails_the_test_that_left_it(monkeypatch):
    """Negative control of the fixture in conftest: it names the thread and fails, and passes once the thread ends."""
    monkeypatch.setattr(conftest, "PATIENCE", 0.01)
    release = threading.Event()
    rule = conftest.threads_left_by()
    next(rule)
    thread = threading.Thread(target=release.wait, name="left-behind")
    thread.start()
    try:
        with pytest.raises(pytest.fail.Exception, match=r"left-behind \(Thread\)"):
            next(rule, None)
    finally:
        release.set()
        thread.join()


def test_a_thread_that_is_about_to_end_is_waited_for():
    release = threading.Event()
    rule = conftest.threads_left_by()
    next(rule)
    threading.Thread(target=release.wait).start()
    threading.Timer(0.05, release.set).start()
    assert next(rule, None) is None


def test_every_test_has_a_private_home_of_its_own(private_home, tmp_path):
    assert os.environ["MICROFLOW_HOME"] == str(private_home)
    assert private_home.parent == tmp_path
    assert private_home.stat().st_mode & 0o777 == 0o700
    assert list(private_home.iterdir()) == []
    assert [name for name in os.environ if name.startswith("MICROFLOW_")] == ["MICROFLOW_HOME"]


def test_rounds_are_the_tests_own_unless_trials_says_more(trials, pytestconfig):
    wanted = pytestconfig.getoption("--trials")
    assert trials(20) == (20 if wanted is None else wanted)


def test_warnings_are_errors():
    with pytest.raises(UserWarning):
        warnings.warn("heard", stacklevel=1)

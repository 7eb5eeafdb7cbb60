# SPDX-License-Identifier: Apache-2.0
"""The whole suite against a vendored copy: the tests are copied as well, with the package's name changed in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from microflow.ext.vendor import vendor

ROOT = Path(__file__).resolve().parent.parent
NAME = "acme._vendor.flow_engine"

# what the checkout alone has: its sources, README, types, examples, and the copies themselves
OF_THE_CHECKOUT = (
    "layers project readme typing census main_job behaviour_index benchmarks transitions vendor vendor_suite".split()  # noqa: SIM905 - a list of words
)

# these look at the README, at another file of tests, or at bytes and log lines that hold the package's name
NOT_RENAMED = (
    "damage_is_no_exception_for_readers states_are_logged_by_their_names example_of_the_readme "
    "program_without_transactions_does_not_load store_for_keys_is_loaded multiprocessing_is_loaded_nowhere"
)

RENAMED = [
    (r"\bfrom microflow\b", f"from {NAME}"),
    (r"\bimport microflow(?=\.)", f"import {NAME}"),
    (r"\bimport microflow\b", f"import {NAME} as microflow"),
    (r"(import sys, )microflow(?=\.)", rf"\1{NAME}"),
    (r"-m microflow\b", f"-m {NAME}"),
    (r'"-m", "microflow"', f'"-m", "{NAME}"'),
    (r"""(["'])microflow\.(?!py["'])""", rf"\1{NAME}."),
    (r"""(?<!/ )(?<!"format": )(?<!format=)(["'])microflow\1""", rf"\1{NAME}\1"),
]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that holds a copy of the package and of its tests."""
    vendor(tmp_path / "acme" / "_vendor", "flow_engine")
    (tmp_path / "acme" / "__init__.py").touch()
    (tmp_path / "acme" / "_vendor" / "__init__.py").touch()
    for folder in ("tests", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    examples = tmp_path / "acme" / "_vendor" / "flow_engine" / "examples"  # no part of a copy, but of some tests
    shutil.copytree(ROOT / "microflow" / "examples", examples, ignore=shutil.ignore_patterns("__pycache__"))
    for name in OF_THE_CHECKOUT:
        (tmp_path / "tests" / f"test_{name}.py").unlink()
    for path in (*tmp_path.glob("tests/*.py"), *examples.glob("*.py")):
        text = path.read_text()
        for pattern, replacement in RENAMED:
            text = re.sub(pattern, replacement, text)
        path.write_text(text)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_suite_passes_against_a_vendored_copy(program):
    """The original is out of reach: the copied tests run with the program's folder alone on the path."""
    (program / "sitecustomize.py").write_text("import sys\nsys.modules['microflow'] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(program)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider",
         "-k", f"not ({' or '.join(NOT_RENAMED.split())})"],
        cwd=program, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 2000

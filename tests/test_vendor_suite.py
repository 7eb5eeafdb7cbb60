# SPDX-License-Identifier: Apache-2.0
"""The whole suite against a vendored copy: the tests are copied as well, with the package's name changed in them.

A copy has no examples; the tests that use them as programs find them beside it."""

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

# Tests of the checkout, not of the package: its files and what they are called, its README, what its benchmarks print,
# and these copies.
OF_THE_CHECKOUT = ("project", "readme", "benchmarks", "vendor_suite")

RENAMED = [
    (r"\bfrom microflow\b", f"from {NAME}"),
    (r"\bimport microflow(?=\.)", f"import {NAME}"),
    (r"\bimport microflow\b", f"import {NAME} as microflow"),
    (r"(import sys, )microflow(?=\.)", rf"\1{NAME}"),
    (r"(import sys, )microflow(?=;)", rf"\1{NAME} as microflow"),
    (r"(\\nfrom )microflow\b", rf"\1{NAME}"),
    (r"-m microflow\b", f"-m {NAME}"),
    (r'"-m", "microflow"', f'"-m", "{NAME}"'),
    (r"""(["'])microflow\.(?!py["'])""", rf"\1{NAME}."),
    (r"""(?<!/ )(?<!"format": )(?<!format=)(?<!b)(["'])microflow\1(?!: |\])""", rf"\1{NAME}\1"),
]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that holds a copy of the package and of its tests."""
    vendor(tmp_path / "acme" / "_vendor", "flow_engine")
    (tmp_path / "acme" / "__init__.py").touch()
    (tmp_path / "acme" / "_vendor" / "__init__.py").touch()
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    examples = tmp_path / "acme" / "_vendor" / "flow_engine" / "examples"  # no part of a copy, but of some tests
    shutil.copytree(ROOT / "microflow" / "examples", examples, ignore=shutil.ignore_patterns("__pycache__"))
    for name in OF_THE_CHECKOUT:
        (tmp_path / "tests" / f"test_{name}.py").unlink()
    modules = [*tmp_path.glob("tests/*.py"), *examples.glob("*.py")]
    for path in (*modules, tmp_path / "README.md"):
        text = path.read_text()
        for pattern, replacement in RENAMED:
            text = re.sub(pattern, replacement, text)
        path.write_text(text)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_suite_passes_against_a_vendored_copy(program):
    """The original is out of reach: the copied tests run with the program's folder alone on the path."""
    (program / "sitecustomize.py").write_text("import sys\nsys.modules['microflow'] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(program)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=program, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 2000

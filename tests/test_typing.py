# SPDX-License-Identifier: Apache-2.0
"""Type checkers infer the right types of what users write. A checker that is missing fails the test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def checked(checker: str, path: str | Path) -> subprocess.CompletedProcess[str]:
    """What a type checker says of a file."""
    return subprocess.run(
        [sys.executable, "-m", checker, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_the_checker_infers_the_types_that_typing_api_asserts(checker):
    done = checked(checker, "tests/typing_api.py")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_wrong_type_fails_the_check(checker, tmp_path):
    """The check above can fail, and fails where the types are wrong."""
    path = tmp_path / "wrong.py"
    path.write_text("from microflow import task\n\n@task\ndef f(x: int) -> int:\n    return x\n\nvalue: str = f(1)\n")
    done = checked(checker, path)
    assert done.returncode == 1
    assert "wrong.py:7" in done.stdout

# SPDX-License-Identifier: Apache-2.0
"""Type checkers infer the right types of what users write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_mypy_infers_the_types_that_typing_api_asserts():
    pytest.importorskip("mypy")
    root = Path(__file__).resolve().parent.parent
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "tests/typing_api.py"], cwd=root, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr

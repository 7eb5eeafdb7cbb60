# SPDX-License-Identifier: Apache-2.0
"""The peers, each in a virtual environment of its own: ``python -m benchmarks peers --install`` makes those."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import venv
from typing import TYPE_CHECKING, Any

from . import ROOT

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENTS = ROOT / "build" / "peers"
ROUNDS = 3

#: peer -> what is installed. The bounds on Prefect's own requirements are those with which this version starts.
REQUIREMENTS = {
    "prefect": ["prefect==3.8.8", "fastapi>=0.139,<0.151", "pydantic<2.13"],
    "dbos": ["dbos"],
    "dask": ["dask[distributed]"],
    "parsl": ["parsl"],
}


def python_of(peer: str) -> Path:
    """The interpreter that has the peer."""
    return ENVIRONMENTS / peer / "bin" / "python"


def install() -> None:
    """Make each peer's environment, unless it is there."""
    for peer, requirements in REQUIREMENTS.items():
        if not python_of(peer).exists():
            venv.create(ENVIRONMENTS / peer, with_pip=True)
        subprocess.run([python_of(peer), "-m", "pip", "install", "-q", *requirements], check=True)


def figures_of(peer: str) -> dict[str, float]:
    """Benchmark name -> the median over some runs of the peer's program."""
    program = ROOT / "benchmarks" / "peer_programs" / f"{peer}.py"
    rounds = []
    for _ in range(ROUNDS):
        done = subprocess.run([python_of(peer), program], check=True, capture_output=True, text=True, timeout=300)
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: round(statistics.median(each[name] for each in rounds), 1) for name in rounds[0]}


def version_of(peer: str) -> str:
    """The version that is installed."""
    code = f"from importlib.metadata import version; print(version({peer!r}))"
    return subprocess.run([python_of(peer), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def measure() -> dict[str, dict[str, Any]]:
    """Peer -> its ``version`` and ``figures``. One that is not installed, or fails, is named on standard error and left
    out: a figure from another day or machine says nothing beside ours."""
    measured = {}
    for peer in REQUIREMENTS:
        if not python_of(peer).exists():
            print(f"{peer} is not installed; run: python -m benchmarks peers --install", file=sys.stderr)
            continue
        try:
            measured[peer] = {"version": version_of(peer), "figures": figures_of(peer)}
        except subprocess.SubprocessError as problem:
            said = getattr(problem, "stderr", None) or ""
            print(f"{peer} is left out: {problem}\n{said}", file=sys.stderr)
    return measured

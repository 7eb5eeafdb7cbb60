# SPDX-License-Identifier: Apache-2.0
"""The size of the package as a wheel has it, deflated, beside its sources as they are; and what the size is made of."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from . import ROOT, compare

if TYPE_CHECKING:
    from pathlib import Path

LOADED = (
    "import sys; from microflow import flow, task; flow(task(int))('1');"
    "print(*(sys.modules[name].__file__ for name in sys.modules if name.partition('.')[0] == 'microflow'), sep='\\n')"
)


def files() -> list[Path]:
    """What goes into the wheel."""
    package = [path for path in (ROOT / "microflow").rglob("*") if path.suffix in (".py", ".typed")]
    return [*package, ROOT / "LICENSE", ROOT / "README.md"]


def kilobytes_deflated() -> float:
    """As ``pip wheel`` packs it; the metadata are mostly the README."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in files():
            wheel.write(path, path.relative_to(ROOT))
    return len(packed.getvalue()) / 1024


def deflated(text: str) -> float:
    """KiB of one file in a wheel, its entry in the folder not counted."""
    packer = zlib.compressobj(wbits=-15)
    return len(packer.compress(text.encode()) + packer.flush()) / 1024


def without_prose(source: str) -> str:
    """A module without its comments and docstrings, of classes' fields too."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            number, column = token.start
            lines[number - 1] = lines[number - 1][:column].rstrip()
    return "\n".join(line for line in lines if line)


def loaded_by_a_run() -> set[str]:
    """The files of microflow that a program loads which runs a flow with a task in it."""
    environment = {"PYTHONPATH": str(ROOT), "MICROFLOW_HOME": ":memory:"}
    done = subprocess.run([sys.executable, "-c", LOADED], env=environment, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def shares() -> dict[str, float]:
    """KiB of each part of the wheel; ``prose`` is what docstrings and comments add to the code of all of them."""
    loaded = loaded_by_a_run()
    parts = dict.fromkeys(("run", "rest", "extensions", "prose", "readme"), 0.0)
    for path in files():
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".py":
            parts["readme"] += deflated(text)
            continue
        code = deflated(without_prose(text))
        inside = path.relative_to(ROOT / "microflow").parts
        apart = inside[0] in ("ext", "examples", "cli.py", "testing.py")
        parts["run" if str(path) in loaded else "extensions" if apart else "rest"] += code
        parts["prose"] += deflated(text) - code
    return {part: round(size, 1) for part, size in parts.items()}


def measure(smoke: bool) -> dict[str, Any]:
    """KiB."""
    measured = compare(
        kilobytes_deflated,
        lambda: sum(path.stat().st_size for path in files()) / 1024,
        what="the package as a wheel",
        beside="its sources",
        unit="KiB",
        smoke=smoke,
    )
    return {**measured, "shares": shares()}

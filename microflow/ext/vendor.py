# SPDX-License-Identifier: Apache-2.0
"""Copies of the package inside of other programs: make one, and verify one.

A vendored copy is this package under any name in any folder, unchanged, without the examples. Beside the
modules it holds the licence and ``MANIFEST.json``, which names the version, the log format and the SHA-256 of
every file, so that an auditor can tell in a second whether somebody edited it. The copy has this module as
well: it verifies itself, and makes further copies.

Nothing here needs the package's metadata or a folder: it also copies itself out of a zip.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..exceptions import ConfigurationError, StorageError
from ..log import FORMAT_VERSION

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from importlib.abc import Traversable

PACKAGE = __name__.rpartition(".ext.")[0]
MANIFEST = "MANIFEST.json"
LICENCE = "LICENSE"
_LEFT_OUT = frozenset({"examples", "__pycache__", MANIFEST, LICENCE})


def vendor(destination: str | os.PathLike[str], name: str = "microflow") -> Path:
    """Copy this package into the folder `destination` as the package `name`; returns the copy's folder.

    `destination` is made if it is missing. A copy that stands there already is replaced if it is unchanged.
    ConfigurationError when `name` is no name for a package, when something else stands there, or when the copy
    was edited; StorageError when the folder cannot be written. The new copy takes its place when it is complete."""
    target = _target(destination, name)
    if target.exists():
        problems = check(destination, name)
        if problems:
            raise ConfigurationError(
                f"{target} is not an unchanged copy of this package ({'; '.join(problems[:3])}). "
                f"Move it away, or choose another name, and try again"
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as folder:
            new, old = Path(folder, "new"), Path(folder, "old")
            _write(new)
            if target.exists():
                target.rename(old)
            new.rename(target)
    except OSError as error:
        raise StorageError(f"{error.filename or target}: {error.strerror or error}. No copy was made") from error
    return target


def check(destination: str | os.PathLike[str], name: str = "microflow") -> list[str]:
    """What differs between the copy `name` in `destination` and its manifest; an empty list when nothing does.

    Python's own ``__pycache__`` folders do not count. ConfigurationError when `name` is no name for a package."""
    target = _target(destination, name)
    try:
        manifest = json.loads((target / MANIFEST).read_bytes())
        recorded = dict(manifest["files"])
    except FileNotFoundError:
        return [f"{target / MANIFEST} is missing: this is no vendored copy"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{target / MANIFEST} cannot be read: {error}"]
    found = {
        path.relative_to(target).as_posix(): path
        for path in target.rglob("*")
        if not path.is_dir() and "__pycache__" not in path.parts and path != target / MANIFEST
    }
    problems = [f"{each} is missing" for each in sorted(recorded.keys() - found.keys())]
    problems += [f"{each} is not part of the package" for each in sorted(found.keys() - recorded.keys())]
    for each in sorted(recorded.keys() & found.keys()):
        if _digest(found[each].read_bytes()) != recorded[each]:
            problems.append(f"{each} was changed")
    return problems


def _target(destination: str | os.PathLike[str], name: str) -> Path:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigurationError(f"{name!r} cannot be the name of a package; choose one such as flow_engine")
    return Path(destination, name)


def _write(folder: Path) -> None:
    """The complete copy, the manifest last."""
    folder.mkdir()
    digests: dict[str, str] = {}
    contents = dict(_contents(files(PACKAGE), ""))
    contents[LICENCE] = _licence()
    for path, data in sorted(contents.items()):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        digests[path] = _digest(data)
    manifest: dict[str, Any] = {
        "package": "microflow",
        "version": sys.modules[PACKAGE].__version__,
        "log_format": FORMAT_VERSION,
        "licence": "Apache-2.0",
        "files": digests,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _contents(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for item in folder.iterdir():
        if item.name in _LEFT_OUT:
            continue
        if item.is_dir():
            yield from _contents(item, f"{prefix}{item.name}/")
        elif item.name.endswith((".py", ".typed")):
            yield prefix + item.name, item.read_bytes()


def _licence() -> bytes:
    """The licence, from where a vendored copy, a checkout or a wheel keeps it."""
    inside = files(PACKAGE).joinpath(LICENCE)
    if inside.is_file():
        return inside.read_bytes()
    beside = Path(str(files(PACKAGE))).parent
    for path in (beside / LICENCE, *sorted(beside.glob(f"microflow-*.dist-info/**/{LICENCE}"))):
        if path.is_file():
            return path.read_bytes()
    raise ConfigurationError(
        f"no {LICENCE} stands in or beside {beside}, and no copy goes without one. Copy from a checkout, a wheel "
        f"or a vendored copy"
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

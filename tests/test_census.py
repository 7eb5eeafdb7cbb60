# SPDX-License-Identifier: Apache-2.0
"""The census example, in one process: what it counts, what it leaves out, what it does with what it cannot read."""

from __future__ import annotations

import json
import os
import sysconfig
from typing import TYPE_CHECKING, Any

import pytest

from microflow.examples.census import add_up, append_line, census, find_modules, parse, table, total

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = '''\
"""A module."""

class Box:
    def get(self):
        return 1

async def fetch():
    def inner():
        pass

    return inner
'''


def write(folder: Path, files: dict[str, str | bytes]) -> str:
    """Make the files below a folder and return the folder as text."""
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "sources"
    place.mkdir()
    return place


def module(path: str, **counts: Any) -> dict[str, Any]:
    """What ``parse`` says of a module, zeros where nothing is given."""
    nothing = {"functions": 0, "classes": 0, "lines": 0, "longest_function": "", "longest_lines": 0}
    return {"path": path, **nothing, **counts}


def test_modules_are_found_in_order_without_tests_and_installed_packages(folder):
    wanted = ["a.py", "pkg/__init__.py", "pkg/deep/z.py"]
    others = ["test/t.py", "pkg/tests/t.py", "idle_test/t.py", "site-packages/s.py", "__pycache__/c.py", "notes.txt"]
    write(folder, dict.fromkeys([*reversed(wanted), *others], ""))
    assert find_modules.fn(str(folder)) == [os.path.join(folder, *name.split("/")) for name in wanted]


@pytest.mark.parametrize("name", ["absent", "file.py"])
def test_a_folder_that_is_none_is_refused_by_its_name(folder, name):
    write(folder, {"file.py": ""})
    with pytest.raises(OSError, match=name):
        find_modules.fn(str(folder / name))


def test_a_folder_inside_that_cannot_be_read_is_refused_and_not_skipped(folder, monkeypatch):
    write(folder, {"a.py": "", "closed/b.py": ""})
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError, match="closed"):
        find_modules.fn(str(folder))


def test_a_module_is_counted_with_its_methods_and_inner_functions(folder):
    path = os.path.join(write(folder, {"sample.py": SAMPLE}), "sample.py")
    assert parse.fn(path, None) == module(
        path, functions=3, classes=1, lines=11, longest_function="sample.py:fetch", longest_lines=5
    )


def test_an_empty_module_counts_as_a_module_of_nothing(folder):
    path = os.path.join(write(folder, {"empty.py": ""}), "empty.py")
    assert parse.fn(path, None) == module(path)


def test_the_encoding_that_a_source_declares_is_used(folder):
    path = os.path.join(write(folder, {"latin.py": b"# -*- coding: latin-1 -*-\nname = '\xe9'\n"}), "latin.py")
    assert parse.fn(path, None)["lines"] == 2


@pytest.mark.parametrize(
    "source", ["def f(:\n", "x = 1\0", b"\xff", "(" * 5000], ids=["syntax", "null", "encoding", "nesting"]
)
def test_a_source_that_does_not_parse_is_refused_by_its_path(folder, source):
    path = os.path.join(write(folder, {"bad.py": source}), "bad.py")
    with pytest.raises(ValueError) as refused:
        parse.fn(path, None)
    assert str(refused.value).startswith(f"cannot parse {path}: ")


def test_each_parse_appends_its_path_to_the_witness_in_one_write(folder, monkeypatch):
    write(folder, {"a.py": "", "bad.py": "def f(:\n"})
    witness = str(folder / "witness")
    written = []
    real_write = os.write

    def write_and_note(file, data):
        if real_write(file, data) == len(data):
            written.append(data)

    monkeypatch.setattr(os, "write", write_and_note)
    parse.fn(str(folder / "a.py"), witness)
    with pytest.raises(ValueError):
        parse.fn(str(folder / "bad.py"), witness)
    lines = [os.fsencode(folder / name) + b"\n" for name in ("a.py", "bad.py")]
    assert written == lines
    assert (folder / "witness").read_bytes() == b"".join(lines)


def test_a_witness_is_never_cut_short(folder):
    (folder / "witness").write_text("before\n")
    append_line(str(folder / "witness"), "after")
    assert (folder / "witness").read_text() == "before\nafter\n"


def test_rows_stand_by_package_and_modules_outside_of_one_share_a_row():
    modules = [
        module("/s/zebra/__init__.py", functions=1, lines=5, longest_function="__init__.py:z", longest_lines=4),
        module("/s/top.py", lines=1),
        module("/s/other.py", lines=2),
        module("/s/zebra/deep/a.py", functions=2, classes=1, lines=9, longest_function="a.py:f", longest_lines=6),
    ]
    assert add_up.fn("/s", modules) == [
        {"package": ".", **total(modules[1:3])},
        {"package": "zebra", **total([modules[0], modules[3]])},
    ]
    assert total([modules[0], modules[3]]) == {
        "modules": 2,
        "functions": 3,
        "classes": 1,
        "lines": 14,
        "longest_function": "a.py:f",
        "longest_lines": 6,
    }


def test_the_flow_completes_and_lists_the_file_that_failed(folder, capsys):
    write(folder, {"a.py": SAMPLE, "pkg/b.py": SAMPLE, "pkg/bad.py": "def f(:\n"})
    report = census(str(folder))
    assert report["totals"] == total([parse.fn(str(folder / name), None) for name in ("a.py", "pkg/b.py")])
    assert [(row["package"], row["modules"]) for row in report["rows"]] == [(".", 1), ("pkg", 1)]
    (failure,) = report["failed"]
    assert failure["path"] == str(folder / "pkg" / "bad.py")
    assert failure["problem"].startswith(f"cannot parse {failure['path']}: invalid syntax")
    assert capsys.readouterr().out == table(report) + "\n"


def test_the_report_is_plain_json_and_the_same_each_time(folder):
    write(folder, {"a.py": SAMPLE, "b.py": SAMPLE, "pkg/c.py": SAMPLE, "bad.py": "def f(:\n"})
    first = census(str(folder), witness=str(folder / "witness"))
    assert json.loads(json.dumps(first)) == first
    assert census(str(folder)) == first
    witnessed = (folder / "witness").read_text().splitlines()
    assert sorted(witnessed) == find_modules.fn(str(folder))


def test_an_empty_folder_gives_an_empty_table(folder):
    report = census(str(folder))
    assert (report["rows"], report["totals"], report["failed"]) == ([], total([]), [])


def test_the_flow_fails_on_a_folder_that_is_none(folder):
    with pytest.raises(FileNotFoundError, match="absent"):
        census(str(folder / "absent"))


def test_the_default_folder_is_the_standard_library(monkeypatch, folder):
    assert os.path.isfile(os.path.join(sysconfig.get_path("stdlib"), "ast.py"))
    write(folder, {"only.py": ""})
    monkeypatch.setattr("microflow.examples.census.STANDARD_LIBRARY", str(folder))
    assert census()["folder"] == str(folder)

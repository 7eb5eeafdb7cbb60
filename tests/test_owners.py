# SPDX-License-Identifier: Apache-2.0
"""Owners: the file of a process that owns runs, between its runs and after them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from microflow import _files, flow
from microflow._owners import Owners
from microflow.client.orchestration import current_client

if TYPE_CHECKING:
    from pathlib import Path


def owners(folder: Path) -> Owners:
    return Owners(str(folder), durable=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_process_goes_on_under_its_token_when_all_its_runs_were_released(tmp_path):
    """Its file stays, without the lock: nobody takes it for alive meanwhile."""
    here, elsewhere = owners(tmp_path), owners(tmp_path)
    token = here.own()
    assert elsewhere.is_alive(token)
    here.disown(token, released=True)
    assert not elsewhere.is_alive(token)
    assert not here.is_alive(token)
    assert names(tmp_path) == [token]
    assert here.own() == token
    assert elsewhere.is_alive(token)
    here.disown(token)
    assert names(tmp_path) == []


@pytest.mark.parametrize("last", [True, False])
def test_a_token_under_which_a_run_was_left_is_not_used_again(tmp_path, last):
    """Else the run that was left would seem to run whenever its process runs another."""
    here = owners(tmp_path)
    token = here.own()
    here.own()
    here.disown(token, released=not last)
    here.disown(token, released=last)
    assert names(tmp_path) == []
    assert here.own() != token


def test_whoever_begins_sweeps_the_file_that_is_kept_and_its_process_draws_a_new_token(tmp_path):
    here, elsewhere = owners(tmp_path), owners(tmp_path)
    token = here.own()
    here.disown(token, released=True)
    other = elsewhere.own()
    assert names(tmp_path) == [other]
    again = here.own()
    assert again not in (token, other)
    assert names(tmp_path) == sorted([other, again])
    here.disown(again)
    elsewhere.disown(other)


def test_a_file_that_somebody_looks_at_is_not_taken_up(tmp_path):
    """Who looks may be about to sweep it."""
    here = owners(tmp_path)
    token = here.own()
    here.disown(token, released=True)
    looking = _files.open_log(str(tmp_path / token), writable=False)
    assert _files.try_lock(looking, shared=True)
    again = here.own()
    assert again != token
    assert names(tmp_path) == [again]
    _files.close(looking)
    here.disown(again)


def test_a_file_is_swept_before_its_lock_can_be_had(tmp_path, monkeypatch):
    """Its process may take it up at any moment: it must not lock what is about to have no name."""
    here, elsewhere = owners(tmp_path), owners(tmp_path)
    token = here.own()
    here.disown(token, released=True)
    unlink, drawn = _files.unlink, []

    def unlink_while_its_process_begins(path: str) -> None:
        if path.endswith(token) and not drawn:
            drawn.append("")
            drawn[0] = here.own()
        unlink(path)

    monkeypatch.setattr(_files, "unlink", unlink_while_its_process_begins)
    other = elsewhere.own()
    assert drawn[0] != token
    assert elsewhere.is_alive(drawn[0])
    here.disown(drawn[0])
    elsewhere.disown(other)


def test_nothing_is_left_when_the_store_is_dropped_or_the_process_ends(tmp_path):
    here = owners(tmp_path / "dropped")
    here.disown(here.own(), released=True)
    assert len(names(tmp_path / "dropped")) == 1
    del here
    assert names(tmp_path / "dropped") == []
    program = f"from microflow._owners import Owners\no = Owners({str(tmp_path)!r} + '/ended', durable=False)\n"
    subprocess.run([sys.executable, "-c", f"{program}o.disown(o.own(), released=True)"], check=True)
    assert names(tmp_path / "ended") == []


def test_the_runs_of_a_process_share_one_file(private_home):
    """One after the other; it is not that of a live process in between."""

    @flow
    def nothing() -> None: ...

    nothing()
    (name,) = names(private_home / "owners")
    nothing()
    assert names(private_home / "owners") == [name]
    assert not current_client().store.is_alive(name)

# SPDX-License-Identifier: Apache-2.0
"""Settings are read from the environment when asked for, and the home is ours alone."""

from __future__ import annotations

import contextvars
import os
import stat
import sys
import threading
import warnings

import pytest

from microflow import settings
from microflow.exceptions import ConfigurationError
from microflow.settings import FIELDS, MEMORY, Settings, current_settings, resolve_home, temporary_settings

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="users and modes are those of POSIX")


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No setting at all, a home folder of its own and a temporary folder of its own."""
    for field in FIELDS.values():
        monkeypatch.delenv(field.variable, raising=False)
    (tmp_path / "user").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "user"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(settings, "_warned", False)
    return tmp_path


# ------------------------------------------------------------------------------------------------ reading


def test_without_variables_every_setting_has_its_default(bare):
    now = current_settings()
    assert now.home is None
    assert (now.durability, now.keep_results) == ("process", True)
    assert (now.default_task_retries, now.default_flow_retries) == (0, 0)
    assert (now.default_task_retry_delay_seconds, now.default_flow_retry_delay_seconds) == (0, 0)
    assert 5 <= now.thread_pool_max_workers <= 32


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("MICROFLOW_HOME", ":memory:", "home", ":memory:"),
        ("MICROFLOW_HOME", os.path.join(os.sep, "a", "..", "b"), "home", os.path.abspath(os.path.join(os.sep, "b"))),
        ("MICROFLOW_DURABILITY", "DISK", "durability", "disk"),
        ("MICROFLOW_KEEP_RESULTS", "false", "keep_results", False),
        ("MICROFLOW_KEEP_RESULTS", "On", "keep_results", True),
        ("MICROFLOW_TASKS_DEFAULT_RETRIES", " 3 ", "default_task_retries", 3),
        ("MICROFLOW_TASKS_DEFAULT_RETRY_DELAY_SECONDS", "0.5", "default_task_retry_delay_seconds", 0.5),
        ("MICROFLOW_FLOWS_DEFAULT_RETRIES", "2", "default_flow_retries", 2),
        ("MICROFLOW_FLOWS_DEFAULT_RETRY_DELAY_SECONDS", "10", "default_flow_retry_delay_seconds", 10),
        ("MICROFLOW_TASKS_RUNNER_THREAD_POOL_MAX_WORKERS", "7", "thread_pool_max_workers", 7),
        ("MICROFLOW_DURABILITY", "", "durability", "process"),
    ],
)
def test_each_variable_is_read(bare, monkeypatch, variable, text, name, value):
    monkeypatch.setenv(variable, text)
    assert getattr(current_settings(), name) == value


@pytest.mark.parametrize(
    ("variable", "text", "accepted"),
    [
        ("MICROFLOW_DURABILITY", "paper", "process or disk"),
        ("MICROFLOW_KEEP_RESULTS", "maybe", "true or false"),
        ("MICROFLOW_TASKS_DEFAULT_RETRIES", "-1", "a whole number from 0"),
        ("MICROFLOW_TASKS_DEFAULT_RETRIES", "1.5", "a whole number from 0"),
        ("MICROFLOW_FLOWS_DEFAULT_RETRIES", "9" * 5000, "a whole number from 0"),
        ("MICROFLOW_TASKS_DEFAULT_RETRY_DELAY_SECONDS", "nan", "seconds from 0"),
        ("MICROFLOW_FLOWS_DEFAULT_RETRY_DELAY_SECONDS", "inf", "seconds from 0"),
        ("MICROFLOW_TASKS_RUNNER_THREAD_POOL_MAX_WORKERS", "0", "a whole number from 1"),
    ],
)
def test_a_value_that_cannot_be_read_is_named_with_its_variable_and_what_is_accepted(
    bare, monkeypatch, variable, text, accepted
):
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError) as caught:
        current_settings()
    for part in (variable, repr(text), accepted):
        assert part in str(caught.value)
    monkeypatch.delenv(variable)
    current_settings()  # and the next reading is not spoilt


def test_a_changed_variable_is_seen_at_the_next_call_and_an_unchanged_environment_gives_the_same_object(
    bare, monkeypatch
):
    first = current_settings()
    assert current_settings() is first
    monkeypatch.setenv("MICROFLOW_UNRELATED", "1")
    assert current_settings() is first
    os.environ["MICROFLOW_TASKS_DEFAULT_RETRIES"] = "4"
    assert current_settings().default_task_retries == 4
    del os.environ["MICROFLOW_TASKS_DEFAULT_RETRIES"]
    assert current_settings() == first


def test_an_environment_without_the_private_dict_is_read_all_the_same(bare, monkeypatch):
    monkeypatch.setattr(os, "environ", {"MICROFLOW_DURABILITY": "disk"})
    assert current_settings().durability == "disk"


def test_a_relative_home_does_not_move_with_the_working_directory(bare, monkeypatch):
    monkeypatch.chdir(bare)
    monkeypatch.setenv("MICROFLOW_HOME", "runs")
    before = current_settings().home
    monkeypatch.chdir(bare / "tmp")
    assert current_settings().home == before == str(bare / "runs")


def test_settings_compare_hash_and_show_by_value():
    one, other = Settings(durability="disk"), Settings(durability="disk")
    assert one == other
    assert hash(one) == hash(other)
    assert one != Settings()
    assert one != "disk"
    assert "durability='disk'" in repr(one)
    assert Settings(**one.as_dict()) == one


# ------------------------------------------------------------------------------------------------ temporary


def test_temporary_settings_hold_inside_the_block_and_nest(bare):
    before = current_settings()
    with temporary_settings(durability="disk", home=MEMORY) as inside:
        assert current_settings() is inside
        with temporary_settings(default_task_retries=2):
            assert (current_settings().durability, current_settings().default_task_retries) == ("disk", 2)
        assert current_settings() is inside
    assert current_settings() == before


def test_temporary_settings_end_when_the_block_raises(bare):
    before = current_settings()
    with pytest.raises(ZeroDivisionError), temporary_settings(durability="disk"):
        raise ZeroDivisionError
    assert current_settings() == before


def test_an_unknown_name_is_refused_with_the_names_that_exist():
    with pytest.raises(ConfigurationError, match=r"no setting durabilty; the settings are home, store, durability"):
        temporary_settings(durabilty="disk")


@pytest.mark.parametrize(
    "wrong",
    [
        {"durability": None},
        {"keep_results": 1},
        {"default_task_retries": True},
        {"default_flow_retries": 1.0},
        {"default_task_retry_delay_seconds": "soon"},
        {"default_flow_retry_delay_seconds": -1},
        {"thread_pool_max_workers": 0},
        {"home": 5},
        {"home": "a\0b"},
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ConfigurationError) as caught:
        temporary_settings(**wrong)
    assert f"setting {name} is {value!r}" in str(caught.value)


def test_temporary_settings_hold_in_a_thread_only_with_a_copy_of_the_context(bare):
    seen = []

    def look():
        seen.append(current_settings().durability)

    with temporary_settings(durability="disk"):
        copy = contextvars.copy_context()
        for target in (look, lambda: copy.run(look)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert seen == ["process", "disk"]


# ------------------------------------------------------------------------------------------------ the home


def test_memory_is_no_folder(bare, monkeypatch):
    monkeypatch.setenv("MICROFLOW_HOME", MEMORY)
    assert resolve_home() == MEMORY


@posix_only
def test_without_a_home_it_is_microflow_under_the_users_folder_closed_to_others(bare):
    home = resolve_home()
    assert home == str(bare / "user" / ".microflow")
    assert stat.S_IMODE(os.stat(home).st_mode) == 0o700
    assert resolve_home() == home


def test_a_given_home_is_made_with_its_parents(bare, monkeypatch):
    monkeypatch.setenv("MICROFLOW_HOME", str(bare / "a" / "b"))
    assert resolve_home() == str(bare / "a" / "b")
    assert (bare / "a" / "b").is_dir()


def test_a_tilde_in_a_given_home_is_the_users_folder(bare, monkeypatch):
    monkeypatch.setenv("MICROFLOW_HOME", os.path.join("~", "runs"))
    assert resolve_home() == str(bare / "user" / "runs")


@pytest.mark.parametrize("below", [(), ("inner", "home")])
def test_a_given_home_that_cannot_be_made_is_an_error_and_nothing_else_is_taken(bare, monkeypatch, below):
    (bare / "file").write_text("")
    home = os.path.join(bare, "file", *below)
    monkeypatch.setenv("MICROFLOW_HOME", home)
    with pytest.raises(ConfigurationError) as caught:
        resolve_home()
    assert home in str(caught.value)
    assert "Set MICROFLOW_HOME to a folder that can be written" in str(caught.value)
    assert list((bare / "tmp").iterdir()) == []


def test_a_given_home_that_cannot_be_written_is_an_error(bare, monkeypatch):
    monkeypatch.setenv("MICROFLOW_HOME", str(bare / "user"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere, so modes prove nothing
    with pytest.raises(ConfigurationError, match="cannot be written"):
        resolve_home()


def fallback(bare):
    return str(bare / "tmp" / f"microflow-{os.getuid()}")


@posix_only
def test_a_users_folder_that_cannot_be_written_gives_a_private_folder_and_one_warning(bare, monkeypatch):
    monkeypatch.setenv("HOME", str(bare / "absent"))
    with pytest.warns(RuntimeWarning, match="may not outlive a reboot") as caught:
        assert resolve_home() == fallback(bare)
    assert len(caught) == 1
    assert stat.S_IMODE(os.stat(fallback(bare)).st_mode) == 0o700
    assert not (bare / "absent").exists()  # a missing home folder of the user's is not ours to make
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_home() == fallback(bare)  # said once


@posix_only
@pytest.mark.filterwarnings("ignore:.*may not outlive a reboot")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: os.symlink(os.path.dirname(path), path), "it is a link"),
        (lambda path: open(path, "w").close(), "it is not a folder"),
        (lambda path: (os.mkdir(path), os.chmod(path, 0o755)), "others may use it (mode 0755"),
    ],
)
def test_a_fallback_that_others_could_have_made_is_refused(bare, monkeypatch, spoil, reason):
    monkeypatch.setenv("HOME", str(bare / "absent"))
    spoil(fallback(bare))
    with pytest.raises(ConfigurationError) as caught:
        resolve_home()
    assert reason in str(caught.value)
    assert fallback(bare) in str(caught.value)


@posix_only
def test_a_fallback_that_belongs_to_somebody_else_is_refused(bare, monkeypatch):
    monkeypatch.setenv("HOME", str(bare / "absent"))
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    os.mkdir(bare / "tmp" / f"microflow-{me + 1}", 0o700)
    with pytest.raises(ConfigurationError, match=f"it belongs to user {me}"):
        resolve_home()


def test_no_folder_at_all_is_an_error_with_the_cure(bare, monkeypatch):
    monkeypatch.setenv("HOME", str(bare / "absent"))

    def no_folder():
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("tempfile.gettempdir", no_folder)
    with pytest.raises(ConfigurationError, match=r"nor any temporary folder.*:memory:"):
        resolve_home()

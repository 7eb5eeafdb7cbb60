# SPDX-License-Identifier: Apache-2.0
"""An entrypoint leads to the object in another process, and errors say what was looked for and what is near."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from microflow import entrypoints
from microflow.entrypoints import entrypoint_of, load_entrypoint, why_not_importable
from microflow.exceptions import MissingFlowError, ScriptError

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import sys
events = getattr(sys, "script_events", [])
events.append(__name__)

def greet(): return "hello"

class Shop:
    def open(self): return self
    class Till:
        def ring(self): return self

_private = 1
if __name__ == "__main__":
    events.append("main part")
"""


@pytest.fixture(autouse=True)
def a_place_of_its_own(tmp_path, monkeypatch):
    """A working directory, a sys.path and tables of loaded modules that end with the test."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "script_events", [], raising=False)
    before = dict(sys.modules)
    for table in (entrypoints._scripts, entrypoints._path_of_module):
        monkeypatch.setattr(entrypoints, next(n for n, v in vars(entrypoints).items() if v is table), {})
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "my_script.py"
    path.write_text(SCRIPT)
    return path


def events():
    return sys.script_events  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------ scripts


def test_a_script_is_imported_under_its_stem_and_not_as_the_main_program(script):
    greet = load_entrypoint(f"{script}:greet")
    assert greet() == "hello"
    assert greet.__module__ == "my_script"
    assert sys.modules["my_script"].greet is greet
    assert events() == ["my_script"]


def test_a_name_inside_a_class_is_found(script):
    shop = load_entrypoint(f"{script}:Shop")
    assert load_entrypoint(f"{script}:Shop.open") is shop.open
    assert load_entrypoint(f"{script}:Shop.Till.ring") is shop.Till.ring


def test_a_relative_path_starts_at_the_working_directory(script, monkeypatch):
    monkeypatch.chdir(script.parent)
    assert load_entrypoint("my_script.py:greet") is load_entrypoint(f"{script}:greet")
    assert load_entrypoint("./work/../my_script.py:greet") is load_entrypoint(f"{script}:greet")


def test_a_script_runs_once_until_it_is_changed(script):
    first = load_entrypoint(f"{script}:greet")
    assert load_entrypoint(f"{script}:greet") is first
    script.write_text(SCRIPT.replace('"hello"', '"howdy"'))  # the same size
    later = script.stat().st_mtime_ns + 1
    os.utime(script, ns=(later, later))  # in the same second
    assert load_entrypoint(f"{script}:greet")() == "howdy"
    assert len(events()) == 2


def test_no_byte_code_is_left_beside_a_script(script):
    load_entrypoint(f"{script}:greet")
    assert not (script.parent / "__pycache__").exists()


def test_a_stem_that_another_module_has_gives_a_name_made_from_the_path(tmp_path, script):
    other = tmp_path / "other" / "my_script.py"
    other.parent.mkdir()
    other.write_text("def greet(): return 'other'\n")
    first, second = load_entrypoint(f"{script}:greet"), load_entrypoint(f"{other}:greet")
    assert (first(), second()) == ("hello", "other")
    assert sys.modules["my_script"].greet is first
    assert second.__module__.startswith("my_script_")
    assert sys.modules[second.__module__].greet is second


@pytest.mark.parametrize("stem", ["json", "wave", "__main__", "my-flow", "no extension"])
def test_a_script_may_have_any_name_and_hides_no_standard_module(tmp_path, stem):
    path = tmp_path / "scripts" / (stem if " " in stem else f"{stem}.py")
    path.parent.mkdir()
    path.write_text("def greet(): return __name__\n")
    name = load_entrypoint(f"{path}:greet")()
    assert name.startswith(stem)
    assert stem not in sys.stdlib_module_names or name != stem
    assert sys.modules["__main__"] is not sys.modules[name]


def test_a_script_finds_what_stands_beside_it_and_in_the_working_directory(tmp_path):
    (tmp_path / "beside_the_script.py").write_text("A = 1\n")
    (tmp_path / "work" / "in_the_working_directory.py").write_text("B = 2\n")
    path = tmp_path / "needs_both.py"
    path.write_text("import beside_the_script, in_the_working_directory as w\nresult = (beside_the_script.A, w.B)\n")
    assert load_entrypoint(f"{path}:result") == (1, 2)
    load_entrypoint(f"{path}:result")
    assert sys.path.count(str(tmp_path)) == 1


def test_a_script_that_was_imported_in_the_ordinary_way_is_not_run_again(script, monkeypatch):
    monkeypatch.syspath_prepend(script.parent)
    import my_script  # type: ignore[import-not-found]

    assert load_entrypoint(f"{script}:greet") is my_script.greet
    assert events() == ["my_script"]
    assert entrypoint_of(my_script.greet) == f"{script}:greet"


def test_a_module_is_registered_while_it_runs(tmp_path):
    path = tmp_path / "looks_at_itself.py"
    path.write_text(
        "import sys, dataclasses\n"
        "me = sys.modules[__name__]\n"
        "spec = __spec__.name, __file__\n"
        "@dataclasses.dataclass\nclass A:\n    x: 'int'\n"
    )
    assert load_entrypoint(f"{path}:me") is sys.modules["looks_at_itself"]
    assert load_entrypoint(f"{path}:spec") == ("looks_at_itself", str(path))


def test_a_script_that_loads_itself_gets_itself_as_far_as_it_is(tmp_path):
    path = tmp_path / "selfish.py"
    path.write_text(
        "from microflow.entrypoints import load_entrypoint\n"
        "def before(): pass\n"
        "found = load_entrypoint(__file__ + ':before')\n"
    )
    assert load_entrypoint(f"{path}:found") is load_entrypoint(f"{path}:before")


def test_a_second_thread_waits_until_the_script_is_loaded(tmp_path, monkeypatch):
    path = tmp_path / "slow.py"
    path.write_text("import sys\nsys.gate.set(); sys.go.wait(10)\ndef late(): pass\n")
    gate, go, found = threading.Event(), threading.Event(), []
    monkeypatch.setattr(sys, "gate", gate, raising=False)
    monkeypatch.setattr(sys, "go", go, raising=False)
    threads = [threading.Thread(target=lambda: found.append(load_entrypoint(f"{path}:late"))) for _ in range(3)]
    threads[0].start()
    assert gate.wait(10)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1


def test_the_main_program_itself_is_not_run_a_second_time(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from microflow.entrypoints import entrypoint_of, load_entrypoint\n"
        "print('started')\n"
        "def work(): pass\n"
        "print(load_entrypoint(entrypoint_of(work)) is work, entrypoint_of(work) == __file__ + ':work')\n"
    )
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "started\nTrue True\n", done.stderr


# ------------------------------------------------------------------------------------------------ modules


@pytest.mark.parametrize("target", ["json.decoder:JSONDecoder.decode", "json.decoder.JSONDecoder.decode"])
def test_a_module_is_given_by_its_name_with_a_colon_or_a_dot(target):
    import json

    assert load_entrypoint(target) is json.decoder.JSONDecoder.decode


def test_modules_of_the_working_directory_are_found(tmp_path):
    package = tmp_path / "work" / "shop_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "flows.py").write_text("def sell(): return 'sold'\n")
    assert load_entrypoint("shop_package.flows:sell")() == "sold"
    assert load_entrypoint("shop_package.flows.sell")() == "sold"
    assert entrypoint_of(load_entrypoint("shop_package.flows:sell")) == "shop_package.flows:sell"


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("nowhere.py:greet", ["nowhere.py", "cannot be read", "Give the path of a script"]),
        ("no_such_package.mod:greet", ["no module 'no_such_package.mod'", "on sys.path"]),
        ("json.no_such_module:greet", ["no module 'json.no_such_module'"]),
        ("no_such_package.mod.greet", ["no_such_package.mod.greet", "path.py:name, or module:name"]),
        ("greet", ["'greet' is no entrypoint"]),
        ("", ["'' is no entrypoint"]),
        (":greet", ["'' is no module name"]),
        ("..mod:greet", ["'..mod' is no module name"]),
        ("./:greet", ["is no file"]),
        ("json:", ["there is no ''"]),
        ("json:dump.<locals>.f", ["inside a function"]),
        ("a\0b.py:greet", ["cannot be read"]),
    ],
)
def test_what_is_not_there_is_named_with_the_cure(target, parts):
    with pytest.raises(MissingFlowError) as caught:
        load_entrypoint(target)
    for part in parts:
        assert part in str(caught.value)


def test_a_file_without_a_name_in_it_says_how_to_write_it(script):
    with pytest.raises(MissingFlowError, match=r"write .*my_script\.py:name"):
        load_entrypoint(str(script))


def test_a_missing_name_lists_the_public_names_near_it(script):
    with pytest.raises(MissingFlowError, match=r"no 'great' in .*my_script\.py\. Did you mean greet\?"):
        load_entrypoint(f"{script}:great")
    with pytest.raises(MissingFlowError, match=r"no 'open_it' in Shop\. Did you mean open\?"):
        load_entrypoint(f"{script}:Shop.open_it")
    with pytest.raises(MissingFlowError) as caught:
        load_entrypoint(f"{script}:xyzzy")
    assert "It has Shop, greet, events, sys." in str(caught.value)
    assert "_private" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("1 / 0", ZeroDivisionError),
        ("def f(:", SyntaxError),
        ("import no_such_module_anywhere", ModuleNotFoundError),
        ("raise SystemExit(3)", SystemExit),
    ],
)
def test_what_the_code_raises_is_a_script_error_that_carries_it(tmp_path, code, kind):
    (tmp_path / "work" / "raises.py").write_text(code)
    for target in ("raises.py:f", "raises:f"):
        with pytest.raises(ScriptError, match=kind.__name__) as caught:
            load_entrypoint(target)
        assert type(caught.value.user_exc) is kind
        assert "raises" not in sys.modules
    (tmp_path / "work" / "raises.py").write_text("def f(): return 'mended'\n")
    assert load_entrypoint("raises.py:f")() == "mended"


def test_an_interrupt_while_a_script_runs_is_no_script_error(tmp_path):
    (tmp_path / "interrupted.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_entrypoint(f"{tmp_path / 'interrupted.py'}:f")
    assert "interrupted" not in sys.modules
    assert entrypoints._loading == {}


def test_a_change_that_breaks_a_script_leaves_the_module_that_was_loaded(script):
    load_entrypoint(f"{script}:greet")
    before = sys.modules["my_script"]
    script.write_text("1 / 0")
    with pytest.raises(ScriptError):
        load_entrypoint(f"{script}:greet")
    assert sys.modules["my_script"] is before


# ------------------------------------------------------------------------------------------------ back to text


class Here:
    def method(self):
        pass

    @classmethod
    def of_class(cls):
        pass

    @staticmethod
    def static():
        pass

    def __call__(self):
        pass


def make_nested():
    def inner():
        pass

    return inner


def test_a_function_of_a_module_is_named_by_module_and_of_a_script_by_its_path(script):
    assert entrypoint_of(make_nested) == f"{__name__}:make_nested"
    assert entrypoint_of(Here.method) == f"{__name__}:Here.method"
    assert entrypoint_of(Here.of_class) == f"{__name__}:Here.of_class"
    assert entrypoint_of(Here.static) == f"{__name__}:Here.static"
    assert entrypoint_of(len) == "builtins:len"
    for name in ("greet", "Shop.open"):
        assert entrypoint_of(load_entrypoint(f"{script}:{name}")) == f"{script}:{name}"


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (make_nested(), "it is defined inside the function make_nested"),
        (lambda: 0, "it is a lambda"),
        (Here().method, "it is a method bound to a Here object"),
        (Here(), "it is a Here object, which has no name of its own"),
        (functools.partial(make_nested), "it is a partial object, which has no name of its own"),
        (type("Lost", (), {"__module__": "gone"}), "its module gone is not in sys.modules"),
    ],
)
def test_what_cannot_be_found_again_has_no_entrypoint_and_a_reason(fn, reason):
    assert entrypoint_of(fn) is None
    assert why_not_importable(fn) == reason
    assert why_not_importable(make_nested) is None


SHOW = (
    "from microflow.entrypoints import entrypoint_of, why_not_importable\n"
    "def work(): pass\n"
    "print(entrypoint_of(work), why_not_importable(work), sep='|')\n"
)


def main_program(tmp_path, arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_function_of_the_main_program_is_named_by_the_path_of_the_script(tmp_path):
    (tmp_path / "program.py").write_text(SHOW)
    assert main_program(tmp_path, ["program.py"]) == f"{tmp_path / 'program.py'}:work|None"


def test_a_module_run_with_m_is_named_by_its_name_so_that_relative_imports_work(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "program.py").write_text(
        SHOW + "from . import __name__ as above\n"
        "from microflow.entrypoints import load_entrypoint\n"
        "print(load_entrypoint('package.program:work') is work)\n"
    )
    assert main_program(tmp_path, ["-m", "package.program"]) == "package.program:work|None\nTrue"


def test_a_function_that_stands_in_no_file_has_no_entrypoint(tmp_path):
    assert main_program(tmp_path, ["-c", SHOW]) == "None|it was typed into a session, a notebook or the command line"
    assert main_program(tmp_path, ["-"], input=SHOW).startswith("None|it was typed into")
    (tmp_path / "program.py").write_text("x = 1\n")
    typed = SHOW.replace("def work(): pass\n", "def work(): pass\n\n")
    assert main_program(tmp_path, ["-i", "program.py"], input=typed).startswith("None|it was typed into")


def test_importing_entrypoints_loads_no_import_machinery():
    heavy = ("importlib.util", "difflib", "inspect")
    code = f"import sys, microflow.entrypoints; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr

# SPDX-License-Identifier: Apache-2.0
"""The house holds: imports point down, files stay readable, and importing microflow costs and starts nothing.

``FLOORS`` is the table of the house as data. Every import that runs must point to a strictly lower number, so no
cycle can exist and the numbers give a reading order. What only types need (under ``TYPE_CHECKING``) may point
anywhere. An import inside a function runs too and obeys the same rule; its comment says why it is not at the top.
"""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import microflow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(microflow.__file__).parent

# Module -> floor. A module of a package is written "package.module", the package's own file "package".
# A module that does not exist yet may stand here; one that exists and does not stand here fails.
FLOORS: dict[str, float] = {
    "exceptions": 0,
    "events": 0.05,
    "_files": 0,
    "_strict_json": 0,
    "_modules": 0,
    "_forks": 0,
    "_digests": 0,
    "_waits": 0.05,
    "_state_parts": 0,
    "_loggers": 0,
    "_typing_only": 0,
    "settings": 0.1,
    "_timeouts": 0.1,
    "_termination": 0.1,
    "_handing_over": 0.1,
    "_containers": 0.1,
    "_deadlocks": 0.1,
    "_arguments": 0.2,
    "_definitions": 0.3,
    "_stored_exceptions": 0.3,
    "_tagged_json": 0.4,
    "_plain_json": 0.4,
    "_json_schema": 0.4,
    "_scalars": 0.4,
    "_shapes": 0.5,
    "_field_shapes": 0.6,
    "_chain": 0.5,
    "_media": 0.5,
    "_ledger": 0.6,
    "_owners": 0.6,
    "_queue": 0.6,
    "_documents": 0.6,
    "_follower": 1,
    "serializers": 1,
    "hashing": 1,
    "log": 1,
    "entrypoints": 1,
    "states": 1,
    "_ends": 1.1,
    "transitions": 1.1,
    "stores": 2,
    "key_stores": 2.1,
    "_kept": 2,
    "_storage": 2,
    "_records": 2,
    "_locks": 2.1,
    "cache_policies": 2.2,
    "client.objects": 3.0,
    "_links": 3.1,
    "client.fold": 3.1,
    "client.deferred": 3.15,
    "client.deployments": 3.15,
    "client.live": 3.2,
    "client.memory": 3.25,
    "client.requests": 3.25,
    "client.news": 3.25,
    "client.asset_events": 3.25,
    "client.coroutines": 3.25,
    "client.reading": 3.27,
    "client.orchestration": 3.3,
    "client.waiting": 3.35,
    "client.inputs": 3.27,
    "client": 3.4,
    "_carried": 3.9,
    "context": 4,
    "_task_options": 4,
    "results": 4.1,
    "coercion": 4,
    "task_runs": 4,
    "logging": 5,
    "_prints": 5.01,
    "runtime._attributes": 5,
    "runtime.flow_run": 5.1,
    "runtime.task_run": 5.1,
    "runtime": 5.2,
    "_assets": 5.05,
    "_transaction_parts": 5,
    "_transaction_lifecycle": 5.05,
    "transactions": 5.06,
    "input": 5,
    "_boundary": 5,
    "_arrivals": 5.05,
    "futures": 5.1,
    "_captured_logs": 5.1,
    "_envelope": 5.1,
    "calls": 5.2,
    "_task_preparation": 5.3,
    "_attempt": 5.3,
    "_worker_process": 5.35,
    "_processes": 5.4,
    "_executors": 5.5,
    "_task_transitions": 5.3,
    "_task_transactions": 5.25,
    "_task_generators": 5.4,
    "_task_lifecycle": 5.5,
    "_pool": 6,
    "_inline_pool": 6.05,
    "task_engine": 6,
    "_tracking": 5.3,
    "_flow_outcome": 5.3,
    "_pausing": 5.3,
    "_flow_lifecycle": 5.5,
    "flow_engine": 6,
    "_dispatch": 6.1,
    "flow_runs": 6.1,
    "_submitting": 6.9,
    "task_runners": 7,
    "_candidates": 6.5,
    "_serving": 7.1,
    "_sweep": 6.5,
    "_worker_status": 6.5,
    "worker": 7.2,
    "tasks": 8,
    "assets": 8.1,
    "flows": 8,
    "_crash_trials": 8.5,
    "_executor_checks": 8.9,
    "_store_checks": 8.9,
    "testing": 9,
    "ext": 9,
    "ext.vendor": 9.1,
    "ext.lambda_deadline": 9.05,
    "ext.aws_lambda": 9.1,
    "_progress": 9,
    "_reports": 9.1,
    "cli": 10,
    "__init__": 11,
    "__main__": 11,
}
OUTSIDE = ("examples",)  # floor 9, on public names only: each as a user would write it

MOST_LINES_OF_A_FILE = 600
MOST_LINES_OF_A_FUNCTION = 60
FOREIGN = {"typing_extensions"}  # all that may be imported beside the standard library
YOUNGER = {"annotationlib"}  # in the standard library of a later Python than the oldest that we run on

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


class Import(NamedTuple):
    """One import that runs: what it names, whether relatively, and where it stands."""

    target: str  # relative: the path inside the package, "" for the package itself; else the full name
    relative: bool
    inside_function: bool
    first_line: int
    last_line: int


class Module:
    """One source file of the package: its name in ``FLOORS``, its text and what it imports when it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package and len(parts) > 1 else parts)
        self.source = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.source)
        self.imports = list(self._imports([self.tree], False))

    def __repr__(self) -> str:
        return self.name  # names the test

    @property
    def is_outside(self) -> bool:
        return self.name.split(".")[0] in OUTSIDE

    def _imports(self, nodes: Iterable[ast.AST], inside_function: bool) -> Iterator[Import]:
        """The imports in some nodes that run, wherever they stand."""
        for node in nodes:
            if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                yield from self._imports(node.orelse, inside_function)
                continue
            for target, relative in self._targets(node):
                lines = node.lineno, node.end_lineno or node.lineno  # type: ignore[attr-defined]  # a statement
                yield Import(target, relative, inside_function, *lines)
            inner = inside_function or isinstance(node, (*Function, ast.Lambda))
            yield from self._imports(ast.iter_child_nodes(node), inner)

    def _targets(self, node: ast.AST) -> Iterator[tuple[str, bool]]:
        """What one import statement or ``import_module`` call with a literal name imports, and whether relatively."""
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield node.module, False
        elif isinstance(node, ast.ImportFrom):
            base = self._resolve(node.level, node.module or "")
            yield from ((_module_of(base, alias.name), True) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if isinstance(name, str):
                dots = len(name) - len(name.lstrip("."))
                yield (self._resolve(dots, name.lstrip(".")), True) if dots else (name, False)

    def _resolve(self, level: int, name: str) -> str:
        """The path inside the package that so many dots and a name mean in this module."""
        here = [] if self.name == "__init__" else self.name.split(".")
        base = here if self.is_package else here[:-1]
        assert level - 1 <= len(base), f"{self.path}: an import leaves the package"
        return ".".join([*base[: len(base) - level + 1], *([name] if name else [])])


def _module_of(base: str, name: str) -> str:
    """What ``from base import name`` loads: the module ``base.name`` where there is one, else ``base``."""
    inner = PACKAGE.joinpath(*base.split("."), name) if base else PACKAGE / name
    is_module = inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()
    return f"{base}.{name}".lstrip(".") if is_module else base


def _lengths(tree: ast.Module) -> Iterator[tuple[int, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Each function with its lines, docstring included; the signature of a public name counts as one line."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            assert node.end_lineno is not None
            public = not node.name.startswith("_") or node.name.endswith("__")
            first = max(node.lineno, node.body[0].lineno - 1) if public else node.lineno
            yield node.end_lineno - first + 1, node


MODULES = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
every_module = pytest.mark.parametrize("module", MODULES, ids=repr)


# ------------------------------------------------------------------------------------------------ imports


@every_module
def test_the_module_has_a_floor(module):
    assert module.is_outside or module.name in FLOORS, f"give {module.name} a floor in tests/test_layers.py"


@every_module
def test_imports_that_run_point_strictly_down(module):
    if module.is_outside:
        return  # see test_outside_modules_use_public_names_only
    floor = FLOORS[module.name]
    wrong = [
        f"line {item.first_line}: {module.name} (floor {floor:g}) imports {item.target or '__init__'}"
        for item in module.imports
        if item.relative and not FLOORS.get(item.target or "__init__", floor) < floor
    ]
    assert wrong == []


@every_module
def test_outside_modules_use_public_names_only(module):
    """What is built on microflow says ``from microflow…`` and touches nothing whose name begins with "_"."""
    if not module.is_outside:
        return
    for item in module.imports:
        assert not item.relative, f"line {item.first_line}: {item.target} is imported relatively"
        target = item.target.removeprefix(microflow.__name__)
        assert "._" not in target, f"line {item.first_line}: {item.target} is private"


@every_module
def test_extensions_import_no_private_module(module):
    """``ext`` shows what can be built on microflow's public modules; it is copied along, so it imports relatively."""
    if module.name.startswith("ext."):
        assert [item.target for item in module.imports if item.relative and f".{item.target}".count("._")] == []


@every_module
def test_imports_of_our_own_are_relative(module):
    """A vendored copy, under another name, must find its own modules."""
    if not module.is_outside:
        assert [item for item in module.imports if not item.relative and item.target.split(".")[0] == "microflow"] == []


@every_module
def test_only_the_standard_library_and_typing_extensions_are_imported(module):
    allowed = sys.stdlib_module_names | FOREIGN | YOUNGER
    targets = [item.target for item in module.imports if not item.relative]
    if module.is_outside:
        targets = [target for target in targets if not f"{target}.".startswith(f"{microflow.__name__}.")]
    assert [target for target in targets if target.split(".")[0] not in allowed] == []


@every_module
def test_an_import_inside_a_function_gives_its_reason(module):
    tokens = tokenize.generate_tokens(io.StringIO(module.source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    silent = [
        f"line {item.first_line}: {item.target}"
        for item in module.imports
        if item.inside_function and commented.isdisjoint(range(item.first_line - 1, item.last_line + 1))
    ]
    assert silent == [], "say on the line, or on the line before, why the import does not stand at the top"


# ------------------------------------------------------------------------------------------------ size


@every_module
def test_the_file_can_be_read_in_one_sitting(module):
    assert len(module.source.splitlines()) <= MOST_LINES_OF_A_FILE


@every_module
def test_every_function_can_be_read_at_one_glance(module):
    long = [f"{node.name}: {lines}" for lines, node in _lengths(module.tree) if lines > MOST_LINES_OF_A_FUNCTION]
    assert long == []


# ------------------------------------------------------------------------------------------------ these checks


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Reads a source as if it stood in a package of its own."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)

    def judge(name: str, source: str) -> Module:
        path = tmp_path.joinpath(*name.split("/"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        return Module(path)

    return judge


def test_imports_are_found_wherever_they_stand_but_for_types(judged):
    judged("log.py", "")
    judged("client/__init__.py", "")
    judged("client/fold.py", "")
    source = (
        "import json\n"
        "from . import log, __version__\n"
        "from .client import fold, get\n"
        "from .client.fold import apply\n"
        "if TYPE_CHECKING:\n    from .flows import Flow\nelse:\n    from .tasks import Task\n"
        "def f():\n    from .cli import main\n    importlib.import_module('.worker', __package__)\n"
    )
    module = judged("states.py", source)
    assert [(item.target, item.relative, item.inside_function) for item in module.imports] == [
        ("json", False, False),
        ("log", True, False),
        ("", True, False),
        ("client.fold", True, False),
        ("client", True, False),
        ("client.fold", True, False),
        ("tasks", True, False),
        ("cli", True, True),
        ("worker", True, True),
    ]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("states.py", "from .client import objects"),  # up
        ("states.py", "from . import states"),  # level
        ("states.py", "from . import __version__"),  # the package itself is the roof
        ("client/fold.py", "from ..flows import Flow"),  # up and out of a package
        ("client/fold.py", "from . import orchestration"),  # up inside a package
        ("states.py", "def f():\n    from .flows import Flow"),  # up, later
    ],
)
def test_an_import_that_does_not_point_down_is_found(judged, name, source):
    for other in ("states.py", "client/__init__.py", "client/objects.py", "client/orchestration.py"):
        judged(other, "")
    with pytest.raises(AssertionError):
        test_imports_that_run_point_strictly_down(judged(name, source))


def test_an_import_inside_a_function_without_a_reason_is_found(judged):
    test_an_import_inside_a_function_gives_its_reason(judged("a.py", "def f():\n    import pickle  # heavy\n"))
    test_an_import_inside_a_function_gives_its_reason(judged("a.py", "def f():\n    # heavy\n    import pickle\n"))
    with pytest.raises(AssertionError):
        test_an_import_inside_a_function_gives_its_reason(judged("a.py", "def f():\n    import pickle\n"))


def test_a_function_is_measured_with_its_docstring_and_a_public_signature_once(judged):
    signature = "(\n    a,\n    b,\n):\n"
    source = f"def f{signature}    '''Doc.'''\n    return a\n\ndef _g{signature}    '''Doc.'''\n    return a\n"
    assert [lines for lines, _ in _lengths(judged("a.py", source).tree)] == [3, 6]


# ------------------------------------------------------------------------------------------------ a fresh interpreter

HEAVY = ["asyncio", "concurrent.futures", "dataclasses", "hashlib", "http", "inspect", "logging", "multiprocessing"]
HEAVY += ["pickle", "random", "socket", "tempfile", "traceback"]
if sys.version_info >= (3, 11):
    HEAVY.append("subprocess")  # the uuid of 3.10 imports platform, and that imports it

# Notes what an import does to the outside. Reading modules is what an import is; all else is a fault.
# Only 3.12 and later announce a new thread to audit hooks, so its starting function is watched too.
WATCHED = """
import _thread, sys
seen = []
start_new_thread = _thread.start_new_thread
def start(*arguments):
    seen.append(("thread", str(arguments)))
    return start_new_thread(*arguments)
_thread.start_new_thread = start
def watch(event, arguments):
    if event == "open":
        name = str(arguments[0])
        if not (name.endswith((".py", ".pyc", ".so", ".zip")) or ".pyc." in name):
            seen.append((event, name))
    elif event.startswith("_thread.start"):
        seen.append(("thread", str(arguments)))
    elif event.startswith(("socket.", "subprocess.", "os.fork", "os.exec", "os.spawn", "os.posix_spawn")):
        seen.append((event, str(arguments)))
sys.addaudithook(watch)
"""


def fresh(code: str, home: Path) -> str:
    """What a new interpreter prints that runs ``code`` with nothing installed but what 3.10 needs."""
    path = [str(ROOT)]
    if sys.version_info < (3, 11):
        import typing_extensions  # only 3.10 needs it

        path.append(str(Path(typing_extensions.__file__).parent))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "MICROFLOW_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_microflow_loads_nothing_heavy(tmp_path):
    code = f"import sys, microflow; microflow.flow; microflow.task; print([n for n in {HEAVY} if n in sys.modules])"
    assert fresh(code, tmp_path) == "[]\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10's typing lacks names that typing_extensions has")
def test_importing_microflow_needs_no_typing_extensions(tmp_path):
    code = "import sys, microflow; microflow.flow; microflow.task; print('typing_extensions' in sys.modules)"
    assert fresh(code, tmp_path) == "False\n"


def test_importing_microflow_starts_and_opens_nothing(tmp_path):
    code = (
        WATCHED
        + "import microflow; microflow.flow; microflow.task\n"
        + "import threading; print(seen, threading.active_count())"
    )
    assert fresh(code, tmp_path / "absent") == "[] 1\n"
    assert not (tmp_path / "absent").exists()


def test_the_watch_sees_a_file_a_socket_and_a_thread(tmp_path):
    code = (
        WATCHED
        + "import threading, socket\n"
        + f"open({str(tmp_path / 'made')!r}, 'w').close()\n"
        + "socket.socket().close()\n"
        + "thread = threading.Thread(target=int); thread.start(); thread.join()\n"
        + "print(sorted({event for event, _ in seen}))"
    )
    assert fresh(code, tmp_path) == "['open', 'socket.__new__', 'thread']\n"


def test_a_blocking_run_never_imports_asyncio(private_home):
    """Invariant I8: a blocking run needs no event loop, so it does not load one."""
    code = (
        "import sys\n"
        "from microflow import flow, task\n"
        "@task\n"
        "def double(x): return 2 * x\n"
        "@flow\n"
        "def calculate(x): return double(x) + 1\n"
        "print(calculate(3), 'asyncio' in sys.modules)\n"
    )
    assert fresh(code, private_home) == "7 False\n"
    assert list(private_home.rglob("*.jsonl")), "the run was not logged on disk"


# Rooms that few runs enter: for subflows, generators, time limits, pauses, caching, other processes.
RARE = ["_carried", "_handing_over", "_json_schema", "_timeouts", "_tracking", "_transaction_lifecycle"]
RARE += ["cache_policies", "client.asset_events", "client.inputs", "flow_runs", "logging", "results", "worker"]


@pytest.mark.parametrize("name", RARE)
def test_a_rare_room_exists(name):
    assert name in FLOORS


def test_a_flow_that_only_calls_loads_neither_logging_nor_pools_nor_rare_rooms(private_home):
    """What an import leaves out is not merely put off to the first call."""
    absent = [*HEAVY, *(f"microflow.{name}" for name in RARE)]
    code = (
        "import sys\n"
        "from microflow import flow, task\n"
        "@task(log_prints=False, retries=1)\n"
        "def double(x): return 2 * x\n"
        "@flow\n"
        "def calculate(x: int): return double(x) + 1\n"
        f"print(calculate(3), [name for name in {absent} if name in sys.modules])\n"
    )
    assert fresh(code, private_home) == "7 []\n"

"""Tests and benches wait for conditions with `tests.wait` and never sleep; and the wait helper itself."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator

import pytest

from tests.tree import TREE
from tests.wait import wait_until, wait_until_async

HELPER = "tests/wait.py"
SOURCES = sorted(
    path for folder in ("tests", "bench") for path in (TREE / folder).rglob("*.py") if str(path.relative_to(TREE)) != HELPER
)
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "clock_gettime", "clock_gettime_ns"}

# Not synchronisation: these pace traffic, or let a measured time pass on purpose.
ALLOWED = {
    ("tests/rig/client.py", "repeat.worker"): "pauses between two requests as a client does",
    ("tests/net/test_pair_sockets.py", "advertised.send"): "paces advertisements",
    ("tests/unit/sync/test_transport.py", "test_an_unknown_key_receives_nothing.scene"): "paces messages",
    ("tests/net/test_pair_pauses.py", "test_a_pair_survives_pauses_of_either_daemon_and_of_both"): "a daemon is stopped",
    ("tests/unit/sync/resets.py", "scene"): "a heartbeat of libzmq falls due",
    ("tests/unit/ctl/cluster/pairing/test_check.py", "test_a_resolver_that_hangs_times_out"): "a resolver that hangs",
    ("tests/bpf/test_fence.py", "test_a_deadline_passes_by_itself"): "sends packets until after the deadline",
    ("tests/fakes/cli.py", "Terminal.wait"): "reads the terminal until the process ends",
    ("tests/rig/node.py", "Node._wait_ready"): "waits on the notify socket",
    ("tests/soak/__main__.py", "_half_seconds_until"): "lets a fault last as long as it should",
    ("tests/soak/__main__.py", "soak"): "rounds until the time is over",
    ("tests/net/web_flood.py", "Flood.run"): "paces what it sends",
    ("bench/replication/subject.py", "stream"): "paces connections",
    ("bench/replication/subject.py", "lags_ms"): "paces connections",
    ("bench/replication/subject.py", "at_rest"): "measures what nodes do at rest",
    ("bench/node.py", "measure"): "memory is measured at rest",
    ("bench/web.py", "_with_pages"): "lets a page be open, and measures memory at rest",
    ("bench/web.py", "_per_second"): "counts what is answered in a time",
}


class Sleeps(ast.NodeVisitor):
    """The (function, line) of each call that lets time pass: sleep, an Event that is never set, a loop against the clock."""

    def __init__(self) -> None:
        self.scope: list[str] = []
        self.loops = 0
        self.found: list[tuple[str, int]] = []

    def _visit_scope(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self.scope.append(node.name)
        loops, self.loops = self.loops, 0
        self.generic_visit(node)
        self.loops = loops
        self.scope.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _visit_scope

    def visit_While(self, node: ast.While) -> None:
        if any(isinstance(each, ast.Call) and _name(each.func) in CLOCKS for each in ast.walk(node.test)):
            self._add(node)
        self.loops += 1
        self.generic_visit(node)
        self.loops -= 1

    def visit_Call(self, node: ast.Call) -> None:
        is_turn = len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
        if _name(node.func) == "sleep" and (self.loops or not is_turn):
            self._add(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "wait":
            made = node.func.value
            if node.args and isinstance(made, ast.Call) and _name(made.func) == "Event":
                self._add(node)
        self.generic_visit(node)

    def _add(self, node: ast.expr | ast.stmt) -> None:
        self.found.append((".".join(self.scope), node.lineno))


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def sleeps(source: str) -> list[tuple[str, int]]:
    visitor = Sleeps()
    visitor.visit(ast.parse(source))
    return visitor.found


def all_sleeps() -> Iterator[tuple[str, str, int]]:
    for path in SOURCES:
        for scope, line in sleeps(path.read_text()):
            yield str(path.relative_to(TREE)), scope, line


def test_tests_and_benches_wait_only_with_the_helper() -> None:
    wrong = [f"{path}:{line} in {scope}" for path, scope, line in all_sleeps() if (path, scope) not in ALLOWED]
    assert not wrong, f"use tests.wait, or state in ALLOWED why this is no synchronisation: {wrong}"


def test_every_exception_is_still_needed() -> None:
    assert set(ALLOWED) == {(path, scope) for path, scope, _ in all_sleeps() if (path, scope) in ALLOWED}


@pytest.mark.parametrize(
    "line",
    [
        "time.sleep(1)",
        "sleep(0.1)",
        "await asyncio.sleep(0.01)",
        "threading.Event().wait(1)",
        "while not done(): await asyncio.sleep(0)",
        "while time.monotonic() < end: ask()",
    ],
)
def test_each_kind_of_sleep_is_found(line: str) -> None:
    assert sleeps(f"async def f():\n    {line}") == [("f", 2)]


def test_one_iteration_of_the_event_loop_is_no_sleep() -> None:
    assert sleeps("async def f():\n    await asyncio.sleep(0)\n    done.wait(5)") == []


def test_the_first_truthy_value_is_returned() -> None:
    values = iter([0, "", "ready"])
    assert wait_until(lambda: next(values), "a value", every_s=0) == "ready"
    values = iter([None, "ready"])
    assert asyncio.run(wait_until_async(lambda: next(values), "a value", every_s=0)) == "ready"


def test_a_timeout_names_what_was_awaited_and_the_last_value() -> None:
    values = iter([0, [], {}])
    with pytest.raises(AssertionError, match=r"the peer: not within 0 s; last value: 0"):
        wait_until(lambda: next(values), "the peer", timeout_s=0, every_s=0)
    with pytest.raises(AssertionError, match=r"the peer: not within 0 s; last value: \[\]"):
        asyncio.run(wait_until_async(lambda: next(values), "the peer", timeout_s=0, every_s=0))

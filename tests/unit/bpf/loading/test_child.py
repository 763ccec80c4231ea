"""A compile child is waited for as long as it works, and stopped when it hangs."""

from __future__ import annotations

import os
import sys

import pytest

from bpf.loading import child
from bpf.loading.child import MAX_PROCESSOR_S, SILENCE_S, Hangs, Work

PYTHON = [sys.executable, "-c"]


def test_a_child_that_works_is_never_too_slow() -> None:
    work, now_s = Work(0.0), 0.0
    for used_s in range(1, 100):
        now_s += SILENCE_S - 1  # a second of the processor in a minute
        assert work.judge(now_s, used_s) == ""
    assert "done nothing for" in work.judge(now_s + SILENCE_S, 99.0)


def test_a_child_that_never_ends_is_stopped() -> None:
    work = Work(0.0)
    assert work.judge(1.0, MAX_PROCESSOR_S) == ""
    assert "processor time" in work.judge(2.0, MAX_PROCESSOR_S + 1)


def test_the_childs_answer_is_returned_and_work_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "LOOK_EVERY_S", 0.05)
    reported = list[int]()
    program = "import sys, time; document = sys.stdin.read(); end = time.process_time() + 0.3\n"
    program += "while time.process_time() < end: pass\nprint(document); print('log', file=sys.stderr); sys.exit(3)"
    done = child.run([*PYTHON, program], b"x" * 1_000_000, os.environ, lambda: reported.append(1))
    assert (done.returncode, len(done.stdout), done.stderr) == (3, 1_000_001, b"log\n") and reported


@pytest.mark.parametrize(
    ("program", "limit", "cause"),
    [
        ("import signal; signal.pause()", "SILENCE_S", "done nothing"),
        ("while True: pass", "MAX_PROCESSOR_S", "processor time"),
    ],
)
def test_a_child_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, program: str, limit: str, cause: str) -> None:
    monkeypatch.setattr(child, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(child, limit, 0.3)
    with pytest.raises(Hangs, match=cause):
        child.run([*PYTHON, program], b"", os.environ, lambda: None)

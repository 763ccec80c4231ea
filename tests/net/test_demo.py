"""`make demo` is the first thing a visitor runs: it must pass, and be readable when its output is not a terminal."""

from __future__ import annotations

import re
import subprocess
import sys


def test_the_demo_passes_and_prints_plain_text() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.demo"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything held" in done.stdout
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout) is None

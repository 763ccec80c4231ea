"""The code of an earlier version, taken from the repository's history, for tests that run both versions.

Decides which commit stands for a version and what is done where the history is missing. Knows nothing of what the tests do
with the code.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.tree import TREE

COMMITS = {"0.1.0": "78e94e145f00f99401afec433caa892a0a438b99"}
PACKAGES = ("bpf", "ctl", "sync")


def code_of(version: str, tree: Path) -> Path:
    """Write the packages of `version` below `tree` and return it; skips the test, with the reason, where they are missing.

    A clone without the whole history lacks them; with XLB_NO_SKIP=1 that skip is a failure (tests/conftest.py).
    """
    command = ["git", "-C", str(TREE), "archive", COMMITS[version], *PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("the upgrade tests need git, to take the code of an earlier version from the history")
    if done.returncode != 0:
        cause = done.stderr.decode(errors="replace").strip()
        pytest.skip(f"the code of {version} (commit {COMMITS[version][:7]}) is not in this clone's history: {cause}")
    subprocess.run(["tar", "-x", "-C", str(tree)], input=done.stdout, check=True)
    return tree

"""What people read of a failed compilation: the compiler's own words, bounded."""

from __future__ import annotations

import pytest

from bpf.loading import loader
from bpf.loading.loader import MAX_LOG_LINES, MAX_WORDS

CLANG = "In file included from x:1:\nxlb.c:84:9: error: expected expression\nint x = ;\n        ^\n1 error generated.\n"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (CLANG, "xlb.c:84:9: error: expected expression"),
        (
            "xlb.c:1:10: fatal error: 'linux/nothere.h' file not found\n",
            "xlb.c:1:10: fatal error: 'linux/nothere.h' file not found",
        ),
        ("LLVM ERROR: out of memory\nStack dump:\n0. x\n", "LLVM ERROR: out of memory"),
        (
            "Unable to find kernel headers.\nchdir(/lib/x): No such file or directory\n",
            "Unable to find kernel headers.; chdir(/lib/x): No such file or directory",
        ),
        ("", "Failed to compile BPF module <text>"),
    ],
)
def test_the_message_has_the_compilers_words(log: str, words: str, small_build: loader.Build) -> None:
    error = {"kind": "compile", "message": "Failed to compile BPF module <text>", "map": ""}
    refused = loader._child_error(small_build, error, log)
    assert str(refused) == f"compiling the data plane failed: {words}" and refused.log == log


def test_long_words_are_cut(small_build: loader.Build) -> None:
    error = {"kind": "compile", "message": "", "map": ""}
    assert len(str(loader._child_error(small_build, error, "x.c:1:1: error: " + "y" * 9000))) < MAX_WORDS + 100


def test_the_journal_gets_the_lines_from_the_first_error_on() -> None:
    assert loader.excerpt(CLANG).splitlines()[0] == "xlb.c:84:9: error: expected expression"
    verifier = "\n".join(f"{number}: r1 = r2" for number in range(100_000)) + "\nR1 invalid mem access\nprocessed 9 insns"
    assert loader.excerpt(verifier).splitlines()[-2:] == ["R1 invalid mem access", "processed 9 insns"]
    assert len(loader.excerpt(verifier).splitlines()) == MAX_LOG_LINES
    assert loader.excerpt("") == ""


@pytest.fixture
def small_build(tmp_path: object) -> loader.Build:
    from pathlib import Path

    directory = Path(str(tmp_path))
    return loader.Build(directory / "bpf", directory / "run")

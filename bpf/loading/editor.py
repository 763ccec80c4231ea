"""Writes the flattened program and its compile command for editors: `python -m bpf.loading.editor [DIRECTORY]`.

The program is C only after flattening (flatten.py), and compiles only with bcc's macros and a header tree. So that clangd,
ctags and readers of `bpftool prog dump` find its functions, this writes program.c, compile_commands.json and the header tree
(build/headers). bcc's map syntax is declared in bpf/program/editor.h. Must not know how the data plane is loaded.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from bpf.loading import compile
from bpf.loading.flatten import flatten
from bpf.loading.headers import include_flags, make_header_tree
from bpf.loading.loader import Build

SOURCE_FILE, COMMANDS_FILE = "program.c", "compile_commands.json"
HEADERS = Path("build", "headers")
SHIM = compile.SOURCE.with_name("editor.h")

_LINE_MARKER = re.compile(r'^#line (\d+) "(.*)"$', re.MULTILINE)


def source() -> str:
    """The flattened program. Comments name the original files: with `#line`, editors would look for those instead."""
    return _LINE_MARKER.sub(r"/* \2, line \1 */", flatten(compile.SOURCE))


def arguments(directory: Path) -> list[str]:
    """The command that compiles program.c in `directory`: default sizes, replication on."""
    build = Build(Path("/sys/fs/bpf/xlb"), Path())
    sizes = compile.c_sizes(build.max_flows, build.max_embryonic, {"replication": True})
    return [
        *("clang", "-x", "c", "-std=gnu11", "-target", "bpf", "-O2"),
        *("-I", str(directory / HEADERS / "include"), *include_flags()),
        *compile.c_constants(),
        *sizes,
        f'-DPINS="{build.bpf_dir}"',
        *("-include", str(SHIM), "-c", str(directory / SOURCE_FILE)),
    ]


def write(directory: Path) -> None:
    """Write or replace the files in `directory`. Raises OSError."""
    directory = directory.resolve()
    headers = directory / HEADERS
    shutil.rmtree(headers, ignore_errors=True)
    headers.mkdir(parents=True)
    make_header_tree(headers)
    (directory / SOURCE_FILE).write_text(source())
    command = {"directory": str(directory), "file": str(directory / SOURCE_FILE), "arguments": arguments(directory)}
    (directory / COMMANDS_FILE).write_text(json.dumps([command], indent=2) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "."))

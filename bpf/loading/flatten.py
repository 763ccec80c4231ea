"""Joins the C files into the single source that bcc's map rewriter needs.

bcc rewrites `map.lookup(...)` only in the main file, so each local `#include "…"` is replaced by the lines of the file,
with `#line` markers that make compiler messages refer to the real file. A file named `*.family.h` is written for one
address family: it is included once per family, with FAM replaced by the name of the family. Decides source lines only;
must not know compilers.
"""

from __future__ import annotations

import re
from pathlib import Path

_INCLUDE = re.compile(r'^\s*#include "([^"]+)"\s*$')
_FAMILY = re.compile(r"FAM\b|(?<=_)FAM(?=_)|\bFAM(?=_)")

FAMILIES = ("v4", "v6")


def flatten(main: Path) -> str:
    """The source of `main` with all local includes inserted, each file without a family once.

    Raises FileNotFoundError naming the include that does not exist.
    """
    lines: list[str] = []
    _append(main, None, set(), lines)
    return "\n".join(lines) + "\n"


def _append(path: Path, family: str | None, seen: set[Path], out: list[str]) -> None:
    if family is None and path in seen:
        return
    seen.add(path)
    out.append(f'#line 1 "{path.name}"')
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = _INCLUDE.match(line)
        if match is None:
            if line.strip() == "#pragma once":
                line = ""
            out.append(_FAMILY.sub(family, line) if family else line)
            continue
        include = path.parent / match[1]
        if not include.is_file():
            raise FileNotFoundError(f"{path.name}:{number} includes {match[1]}, which does not exist in its directory")
        for each in (family,) if family or not include.name.endswith(".family.h") else FAMILIES:
            _append(include, each, seen, out)
        out.append(f'#line {number + 1} "{path.name}"')

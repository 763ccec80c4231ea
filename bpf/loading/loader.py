"""Makes sure that a node's program and tables are pinned: adopts what is there, or has it built by the compile child.

Decides when pins may be adopted, upgraded in place (tables kept, program replaced) or must be refused. Building happens
in a directory beside bpf_dir that is renamed into place, so pins are never half made. It knows neither interfaces
(attach.py) nor what is in the tables (plane.py), and never imports bcc.

The directory carries its own description in the text of a symbolic link, `build`: ABI version, identity of the build, and
a fingerprint of each table. It lives exactly as long as the pins; run_dir/layout.json may be lost and costs one compilation.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from bpf import constants
from bpf.dataplane import PlaneError
from bpf.loading import bpffs, compile
from bpf.loading.flatten import flatten
from bpf.loading.headers import compiler_flags
from bpf.maps import layout
from bpf.maps.layout import Layouts, TableLayout

PROGRAM = compile.PROGRAM
BUILD_LINK = "build"
EMBRYONIC_SHARE = 8
"""One embryonic connection is provided for per so many lasting ones: they are preallocated, 300 bytes each per family."""
MIN_EMBRYONIC = 1024
COMPILE_TIMEOUT_S = 180
RESETTABLE = frozenset({"counters", "error_budget", "scratch_v4", "scratch_v6"})
"""Tables an upgrade may start afresh: nothing depends on their past."""

_CAP_SYS_ADMIN, _CAP_NET_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 12, 38, 39
_REMEDY = "start xlbd with --replace-pins, which makes new tables and drops all connections"


@dataclass(frozen=True, slots=True)
class Build:
    """What a node asks of the data plane. max_flows counts connections; a feature is a C macro in lower case.

    source: the C file; only tests name another one.
    """

    bpf_dir: Path
    run_dir: Path
    max_flows: int = 1048576
    features: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    source: Path = compile.SOURCE

    @property
    def max_embryonic(self) -> int:
        return max(MIN_EMBRYONIC, self.max_flows // EMBRYONIC_SHARE)

    def identity(self) -> str:
        """Equal for two builds whose programs and tables are the same. Cheap: no compiler is asked."""
        digest = hashlib.sha256()
        parts = [flatten(self.source), *compile.c_constants(), *compiler_flags(), os.uname().release]
        parts += compile.c_sizes(self.max_flows, self.max_embryonic, dict(self.features))
        for part in parts:
            digest.update(part.encode() + b"\0")
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Loaded:
    """How the pins came to be, and what lies in them."""

    how: Literal["adopted", "built", "upgraded", "replaced"]
    layouts: Layouts
    took_ms: float


@dataclass(frozen=True, slots=True)
class _Pins:
    """What a directory of pins says of itself."""

    names: frozenset[str]
    abi: int
    identity: str
    max_flows: int
    tables: Mapping[str, str]


def ensure(build: Build, replace: bool = False) -> Loaded:
    """Pin the program and its tables under build.bpf_dir, keeping what is there whenever that is right.

    replace: give up existing tables, with all connections in them, instead of refusing pins that cannot be kept.
    Raises PlaneError, with nothing changed, when privilege, bpffs or compiler are missing, the source does not compile, or
    existing pins are of another ABI version, size or layout.
    """
    started = time.monotonic()
    _check_privilege()
    bpffs.ensure(build.bpf_dir)
    try:
        build.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        identity = build.identity()
    except OSError as error:
        raise PlaneError(f"run_dir {build.run_dir} or the data plane's C source is out of reach: {error}") from error
    _finish_interrupted(build.bpf_dir)
    pins = _read_pins(build.bpf_dir)
    if pins and not replace:
        _refuse_incompatible(build, pins)
        layouts = _adoptable(build, pins, identity)
        if layouts:
            return Loaded("adopted", layouts, _ms_since(started))
    kept = pins if pins and not replace else None
    layouts = _build(build, identity, kept)
    try:
        layout.store(layouts, build.run_dir)
    except OSError as error:
        raise PlaneError(f"{build.run_dir / layout.FILE_NAME} cannot be written: {error}") from error
    how: Literal["built", "upgraded", "replaced"] = "upgraded" if kept else "replaced" if pins else "built"
    return Loaded(how, layouts, _ms_since(started))


def remove_pins(bpf_dir: Path) -> None:
    """Unpin everything under bpf_dir; programs still on an interface stay there until detached."""
    for path in (bpf_dir, _aside(bpf_dir), _old(bpf_dir)):
        _remove_tree(path)


def program_path(bpf_dir: Path) -> Path:
    """Where the program is pinned."""
    return bpf_dir / PROGRAM


# --- existing pins -------------------------------------------------------------------------------------------


def _read_pins(bpf_dir: Path) -> _Pins | None:
    """None if there are no pins. Raises PlaneError for pins that do not say what they are."""
    try:
        names = frozenset(os.listdir(bpf_dir))  # noqa: PTH208 (names are wanted)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise PlaneError(f"{bpf_dir} may not be read ({error.strerror}): run as root") from error
    if not names:
        return None
    try:
        words = dict(word.split("=", 1) for word in str((bpf_dir / BUILD_LINK).readlink()).split())
        return _Pins(names, int(words.pop("abi")), words.pop("identity"), int(words.pop("max_flows")), words)
    except (OSError, ValueError, KeyError) as error:
        raise PlaneError(
            f"{bpf_dir} holds pins ({', '.join(sorted(names)[:3])}, …) that no version of xlb described: "
            f"choose another bpf_dir, or if they are xlb's, remove them: rm -r {bpf_dir}"
        ) from error


def _refuse_incompatible(build: Build, pins: _Pins) -> None:
    if pins.abi != constants.ABI_VERSION:
        raise PlaneError(
            f"the pins in {build.bpf_dir} are of ABI version {pins.abi}, this xlb's is {constants.ABI_VERSION}: "
            f"start the version that made them, or {_REMEDY}"
        )
    if pins.max_flows != build.max_flows:
        raise PlaneError(
            f"the pins in {build.bpf_dir} were made for max_flows = {pins.max_flows}, the node file says {build.max_flows}: "
            f"put the old number back, or {_REMEDY}"
        )


def _adoptable(build: Build, pins: _Pins, identity: str) -> Layouts | None:
    """The layouts, if pins, layout.json and this source all belong together."""
    layouts = layout.load(build.run_dir) if pins.identity == identity else None
    if layouts is None or layouts.identity != identity or layouts.abi != pins.abi:
        return None
    complete = layouts.tables.keys() | {PROGRAM} <= pins.names
    return layouts if complete and _fingerprints(layouts.tables) == pins.tables else None


def _fingerprints(tables: Mapping[str, TableLayout]) -> dict[str, str]:
    return {name: table.fingerprint() for name, table in tables.items()}


# --- building ------------------------------------------------------------------------------------------------


def _aside(bpf_dir: Path) -> Path:
    return bpf_dir.with_name(bpf_dir.name + "-building")


def _old(bpf_dir: Path) -> Path:
    return bpf_dir.with_name(bpf_dir.name + "-old")


def _finish_interrupted(bpf_dir: Path) -> None:
    """Clear what a start that was killed left: a half-built directory, or the one being replaced."""
    _remove_tree(_aside(bpf_dir))
    _remove_tree(_old(bpf_dir))


def _remove_tree(directory: Path) -> None:
    if directory.is_dir():
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def _build(build: Build, identity: str, kept: _Pins | None) -> Layouts:
    """Have the child build beside bpf_dir, then move the result in. `kept`: the pins whose tables go on."""
    aside = _aside(build.bpf_dir)
    try:
        aside.mkdir(mode=0o700)
        known = {name: kept.tables[name] for name in kept.tables.keys() & kept.names} if kept else {}
        for name in (kept.names if kept else frozenset()) - {PROGRAM, BUILD_LINK}:
            os.link(build.bpf_dir / name, aside / name)
        tables = _run_child(build, aside, known)
        layouts = Layouts(constants.ABI_VERSION, identity, tables)
        words = {"abi": layouts.abi, "identity": identity, "max_flows": build.max_flows, **_fingerprints(tables)}
        (aside / BUILD_LINK).symlink_to(" ".join(f"{key}={value}" for key, value in words.items()))
        if kept:
            _move_into(aside, build.bpf_dir, tables)
        else:
            _swap(aside, build.bpf_dir)
    except OSError as error:
        hint = f"; {_privilege_sentence()}" if isinstance(error, PermissionError) else ""
        raise PlaneError(f"pinning under {build.bpf_dir} failed: {error}{hint}") from error
    finally:
        _remove_tree(aside)
        _remove_tree(_old(build.bpf_dir))
    return layouts


def _move_into(aside: Path, bpf_dir: Path, tables: Mapping[str, TableLayout]) -> None:
    """Replace the program last but for its description: who is interrupted before that compiles again."""
    present = set(os.listdir(bpf_dir))  # noqa: PTH208 (names are wanted)
    for name in tables:
        if name not in present or (aside / name).stat().st_ino != (bpf_dir / name).stat().st_ino:
            (aside / name).rename(bpf_dir / name)
    (aside / PROGRAM).rename(bpf_dir / PROGRAM)
    (aside / BUILD_LINK).rename(bpf_dir / BUILD_LINK)
    for name in present - tables.keys() - {PROGRAM, BUILD_LINK}:
        (bpf_dir / name).unlink()


def _swap(aside: Path, bpf_dir: Path) -> None:
    if bpf_dir.is_dir():
        bpf_dir.rename(_old(bpf_dir))
    aside.rename(bpf_dir)


def _run_child(build: Build, directory: Path, known: Mapping[str, str]) -> dict[str, TableLayout]:
    """Tables the child made or found right in `directory`, with the program pinned beside them."""
    while True:
        answer, log = _ask_child(build, directory, known)
        error = answer.get("error")
        if error is None:
            return {name: TableLayout(**table) for name, table in answer["tables"].items()}
        unfit = directory / error["table"]
        if error["kind"] != "table" or error["table"] not in RESETTABLE or not unfit.exists():
            raise _child_error(build, error, log)
        unfit.unlink()


def _ask_child(build: Build, directory: Path, known: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The child's answer and what it said on stderr."""
    source_root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join([source_root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(dir=build.run_dir, prefix="compile-") as scratch:
        request = {
            "pins": str(directory),
            "source": str(build.source),
            "max_flows": build.max_flows,
            "max_embryonic": build.max_embryonic,
            "features": dict(build.features),
            "headers": scratch,
            "known": dict(known),
        }
        try:
            child = subprocess.run(
                [sys.executable, "-m", "bpf.loading.compile"],
                input=json.dumps(request).encode(),
                capture_output=True,
                timeout=COMPILE_TIMEOUT_S,
                env={**os.environ, "PYTHONPATH": search},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PlaneError(f"compiling the data plane took more than {COMPILE_TIMEOUT_S} s and was stopped") from error
    log = child.stderr.decode(errors="replace")
    try:
        answer: dict[str, Any] = json.loads(child.stdout)
    except json.JSONDecodeError as error:
        end = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        last = log.strip().rpartition("\n")[2]
        raise PlaneError(f"the compile child ended with {end} and no answer; it said: {last or 'nothing'}", log) from error
    return answer, log


def _child_error(build: Build, error: Mapping[str, str], log: str) -> PlaneError:
    message = error["message"]
    if error["kind"] == "table":
        return PlaneError(f"the pins in {build.bpf_dir} do not fit this version of xlb: {message}; {_REMEDY}")
    if error["kind"] == "compile":
        message = f"compiling the data plane failed: {_first_error(log) or message}"
    if error["kind"] == "load":
        message = f"the kernel refused the data plane: {_last_word(log) or message}"
    return PlaneError(message, log)


def _first_error(log: str) -> str:
    """The line of clang's output that says what is wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if " error: " in line), next((line for line in lines if "error" in line), ""))


def _last_word(log: str) -> str:
    """The verifier's verdict: its last line before the statistics."""
    noise = ("processed ", "HINT:", "verification time", "stack depth")
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith(noise)]
    return lines[-1] if lines else ""


# --- privilege -----------------------------------------------------------------------------------------------


def _check_privilege() -> None:
    status = Path("/proc/self/status").read_text()
    held = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    enough = held >> _CAP_SYS_ADMIN & 1 or all(held >> number & 1 for number in (_CAP_BPF, _CAP_PERFMON))
    if not enough or not held >> _CAP_NET_ADMIN & 1:
        raise PlaneError(_privilege_sentence())


def _privilege_sentence() -> str:
    return "loading the data plane needs root, or the capabilities CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"


def _ms_since(started: float) -> float:
    return (time.monotonic() - started) * 1000

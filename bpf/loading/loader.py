"""Ensures that the program and the maps of a node are pinned: adopts existing pins, or has the compile child build them.

Decides whether pins are adopted, upgraded in place (maps kept, program replaced) or refused. A build happens in a second
directory, which is renamed to bpf_dir, so that pins are always complete. Must not know interfaces (attach.py) nor the
entries of maps (plane.py), and never imports bcc.

The target of the symbolic link `build` in bpf_dir describes the pins: ABI version, identity of the build, and a fingerprint
of each map. It exists exactly as long as the pins. run_dir/layout.json may be lost, which costs one compilation. A symbolic
link next to bpf_dir names the run_dir, for the removal of xlb without a node file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from bpf import constants, libbpf
from bpf.dataplane import PlaneError
from bpf.loading import bpffs, btf, child, compile
from bpf.loading.flatten import flatten
from bpf.loading.headers import compiler_flags
from bpf.maps import layout
from bpf.maps.layout import Layouts, MapLayout

PROGRAM, HANDLERS = compile.PROGRAM, compile.HANDLERS
BUILD_LINK = "build"
CAPTURE = "capture"
"""The feature that records packets; never in the program that is pinned in bpf_dir."""
EMBRYONIC_SHARE = 8
"""Ratio of max_flows to the capacity for embryonic connections, which are preallocated: 300 bytes each per family."""
MIN_EMBRYONIC = 1024
RESETTABLE = frozenset({"changes", "counters", "error_budget", "recent_v4", "recent_v6", "scratch_v4", "scratch_v6"})
"""Maps that an upgrade may replace by empty ones: nothing depends on their old entries."""

MAX_WORDS, LAST_LINES, MAX_LOG_LINES = 500, 3, 20

_CAP_SYS_ADMIN, _CAP_NET_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 12, 38, 39
_REMEDY = "start xlbd with --replace-pins, which creates new maps and drops all connections"


@dataclass(frozen=True, slots=True)
class Build:
    """The data plane that a node wants. max_flows counts connections; a feature is the name of a C macro in lower case.

    source: the C file; only tests use another one.
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
        """Equal for two builds with the same program and maps. Cheap: does not run the compiler."""
        digest = hashlib.sha256()
        parts = [flatten(self.source), *compile.c_constants(), *compiler_flags(), os.uname().release]
        parts += compile.c_sizes(self.max_flows, self.max_embryonic, dict(self.features))
        for part in parts:
            digest.update(part.encode() + b"\0")
        digest.update(btf.program_types([PROGRAM])[0])
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Loaded:
    """How the pins were obtained, and their layouts."""

    how: Literal["adopted", "built", "upgraded", "replaced"]
    layouts: Layouts
    took_ms: float


@dataclass(frozen=True, slots=True)
class _Pins:
    """The pins in a directory, and their description."""

    names: frozenset[str]
    abi: int
    identity: str
    max_flows: int
    features: frozenset[str]
    maps: Mapping[str, str]


def ensure(build: Build, replace: bool = False, working: Callable[[], None] = lambda: None) -> Loaded:
    """Pin the program and its maps under build.bpf_dir, and keep existing maps if they match.

    replace: delete existing maps, with all their connections, instead of refusing pins that do not match.
    working: called every second while the compiler runs, however long it takes on a slow machine.
    Raises PlaneError, with nothing changed, if privilege, bpffs or compiler is missing, the source does not compile, or
    existing pins have another ABI version, size or layout.
    """
    started = time.monotonic()
    _check_privilege()
    bpffs.ensure(build.bpf_dir)
    try:
        build.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        identity = build.identity()
    except OSError as error:
        raise PlaneError(f"run_dir {build.run_dir} or the C source of the data plane cannot be read: {error}") from error
    _finish_interrupted(build.bpf_dir)
    pins = _read_pins(build.bpf_dir)
    if pins and not replace:
        _refuse_incompatible(build, pins)
        layouts = _adoptable(build, pins, identity)
        if layouts:
            _note_run_dir(build)
            return Loaded("adopted", layouts, _ms_since(started))
    kept = pins if pins and not replace else None
    layouts = _build(build, identity, kept, working)
    try:
        layout.store(layouts, build.run_dir)
    except OSError as error:
        raise PlaneError(f"{build.run_dir / layout.FILE_NAME} cannot be written: {error}") from error
    _note_run_dir(build)
    how: Literal["built", "upgraded", "replaced"] = "upgraded" if kept else "replaced" if pins else "built"
    return Loaded(how, layouts, _ms_since(started))


def capture_dir(bpf_dir: Path) -> Path:
    """Where the program of a capture is pinned, with hard links to the pins of the maps that it shares."""
    return bpf_dir.with_name(bpf_dir.name + "-capture")


def build_capture(build: Build, working: Callable[[], None] = lambda: None) -> Path:
    """Pin a build that records packets, on the maps of the pinned one, which stays as it is. Raises PlaneError.

    Returns its directory, which `remove_capture` removes once no interface has the program.
    """
    directory = capture_dir(build.bpf_dir)
    _remove_tree(directory)
    pins = _read_pins(build.bpf_dir)
    if pins is None:
        raise PlaneError(f"nothing is pinned in {build.bpf_dir}")
    recording = replace(build, features={**build.features, CAPTURE: True})
    try:
        directory.mkdir(mode=0o700)
        for name in pins.maps.keys() & pins.names - {HANDLERS}:
            os.link(build.bpf_dir / name, directory / name)
        _run_child(recording, directory, {name: pins.maps[name] for name in pins.maps.keys() & pins.names}, working)
        changed = [name for name in pins.maps.keys() - {HANDLERS} if not (directory / name).samefile(build.bpf_dir / name)]
        if changed:
            raise PlaneError(f"the maps {', '.join(changed)} are of another version: restart xlbd")
    except BaseException as error:
        _remove_tree(directory)
        if isinstance(error, OSError):
            raise PlaneError(f"pinning under {directory} failed: {error}") from error
        raise
    return directory


def remove_capture(bpf_dir: Path) -> None:
    """No interface has the program of a capture any more."""
    _remove_tree(capture_dir(bpf_dir))


def describe(build: Build) -> str:
    """What is pinned, and what a start would do with it. Changes nothing. Raises PlaneError for pins that a start refuses."""
    pins = _read_pins(build.bpf_dir)
    if pins is None:
        return f"none in {build.bpf_dir}: the next start compiles the program"
    _refuse_incompatible(build, pins)
    return f"{len(pins.maps)} maps in {build.bpf_dir}, of this version's ABI: connections are kept"


def pinned_features(bpf_dir: Path) -> frozenset[str]:
    """The features of the pinned program; none if nothing is pinned, or not by a version that noted them."""
    try:
        pins = _read_pins(bpf_dir)
    except PlaneError:
        return frozenset()
    return pins.features if pins else frozenset()


def remove_pins(bpf_dir: Path) -> None:
    """Unpin everything under bpf_dir; a program on an interface stays attached."""
    for path in (bpf_dir, _building(bpf_dir), _old(bpf_dir), _replaced(bpf_dir), capture_dir(bpf_dir)):
        _remove_tree(path)
    _run_dir_link(bpf_dir).unlink(missing_ok=True)


def run_dir_of(bpf_dir: Path) -> Path | None:
    """The run_dir of the daemon that made or adopted the pins last; None: not known."""
    try:
        return _run_dir_link(bpf_dir).readlink()
    except OSError:
        return None


def _note_run_dir(build: Build) -> None:
    """Next to the pins, because version 0.1.0 takes everything in bpf_dir for a map. Without it, only removal knows less."""
    link = _run_dir_link(build.bpf_dir)
    if run_dir_of(build.bpf_dir) != build.run_dir:
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)
            link.symlink_to(build.run_dir)


def _run_dir_link(bpf_dir: Path) -> Path:
    return bpf_dir.with_name(bpf_dir.name + "-run")


def program_path(bpf_dir: Path) -> Path:
    """The path of the pinned program."""
    return bpf_dir / PROGRAM


def why_untraceable(bpf_dir: Path) -> tuple[str, bool] | None:
    """Why nothing can attach to the pinned program, and whether another build of it would help; empty: tools can.

    None: nothing is pinned, or it cannot be opened.
    """
    try:
        fd = libbpf.obj_get(program_path(bpf_dir))
    except OSError:
        return None
    try:
        if not libbpf.program_info(fd).type_id:
            return "the program has no type information (BTF)", True
        refusal = libbpf.trace_refusal(fd)
        return (f"this kernel lets no program trace another ({refusal})", False) if refusal else ("", False)
    except OSError:
        return None
    finally:
        os.close(fd)


# --- existing pins -------------------------------------------------------------------------------------------


def _read_pins(bpf_dir: Path) -> _Pins | None:
    """None if there are no pins. Raises PlaneError for pins without a valid description."""
    try:
        names = frozenset(os.listdir(bpf_dir))  # noqa: PTH208 (names are wanted)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise PlaneError(f"{bpf_dir} cannot be read ({error.strerror}): run as root") from error
    if not names:
        return None
    try:
        words = dict(word.split("=", 1) for word in str((bpf_dir / BUILD_LINK).readlink()).split())
        features = frozenset(filter(None, words.pop("features", "").split("+")))
        return _Pins(names, int(words.pop("abi")), words.pop("identity"), int(words.pop("max_flows")), features, words)
    except (OSError, ValueError, KeyError) as error:
        raise PlaneError(
            f"{bpf_dir} holds pins ({', '.join(sorted(names)[:3])}, …) without a description by xlb: "
            f"choose another bpf_dir, or if they are xlb's, remove them: rm -r {bpf_dir}"
        ) from error


def _refuse_incompatible(build: Build, pins: _Pins) -> None:
    if pins.abi != constants.ABI_VERSION:
        raise PlaneError(
            f"the pins in {build.bpf_dir} have ABI version {pins.abi}, this xlb has {constants.ABI_VERSION}: "
            f"start the version that created them, or {_REMEDY}"
        )
    if pins.max_flows != build.max_flows:
        raise PlaneError(
            f"the pins in {build.bpf_dir} have max_flows = {pins.max_flows}, the node file has {build.max_flows}: "
            f"restore the old value, or {_REMEDY}"
        )


def _adoptable(build: Build, pins: _Pins, identity: str) -> Layouts | None:
    """The layouts, if pins, layout.json and source match."""
    layouts = layout.load(build.run_dir) if pins.identity == identity else None
    if layouts is None or layouts.identity != identity or layouts.abi != pins.abi:
        return None
    complete = layouts.maps.keys() | {PROGRAM} <= pins.names
    return layouts if complete and _fingerprints(layouts.maps) == pins.maps else None


def _fingerprints(maps: Mapping[str, MapLayout]) -> dict[str, str]:
    return {name: each.fingerprint() for name, each in maps.items()}


# --- building ------------------------------------------------------------------------------------------------


def _building(bpf_dir: Path) -> Path:
    return bpf_dir.with_name(bpf_dir.name + "-building")


def _replaced(bpf_dir: Path) -> Path:
    return bpf_dir.with_name(bpf_dir.name + "-replaced")


def _old(bpf_dir: Path) -> Path:
    return bpf_dir.with_name(bpf_dir.name + "-old")


def _finish_interrupted(bpf_dir: Path) -> None:
    """Remove what an interrupted start left: an incomplete directory, or the one being replaced."""
    _remove_tree(_building(bpf_dir))
    _remove_tree(_old(bpf_dir))


def _remove_tree(directory: Path) -> None:
    if directory.is_dir():
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def _build(build: Build, identity: str, kept: _Pins | None, working: Callable[[], None]) -> Layouts:
    """Have the child build in a second directory, then move the result to bpf_dir. `kept`: the pins whose maps are kept."""
    building = _building(build.bpf_dir)
    try:
        building.mkdir(mode=0o700)
        known = {name: kept.maps[name] for name in kept.maps.keys() & kept.names} if kept else {}
        for name in (kept.names if kept else frozenset()) - {PROGRAM, HANDLERS, BUILD_LINK}:
            os.link(build.bpf_dir / name, building / name)
        maps = _run_child(build, building, known, working)
        layouts = Layouts(constants.ABI_VERSION, identity, maps)
        words = {"abi": layouts.abi, "identity": identity, "max_flows": build.max_flows, **_fingerprints(maps)}
        words["features"] = "+".join(sorted(name for name, on in build.features.items() if on))
        (building / BUILD_LINK).symlink_to(" ".join(f"{key}={value}" for key, value in words.items()))
        _keep_handlers(build.bpf_dir)
        if kept:
            _move_into(building, build.bpf_dir, maps)
        else:
            _swap(building, build.bpf_dir)
    except OSError as error:
        hint = f"; {_privilege_message()}" if isinstance(error, PermissionError) else ""
        raise PlaneError(f"pinning under {build.bpf_dir} failed: {error}{hint}") from error
    finally:
        _remove_tree(building)
        _remove_tree(_old(build.bpf_dir))
    return layouts


def _keep_handlers(bpf_dir: Path) -> None:
    """The kernel empties a map of programs that is neither pinned nor open: keep that of the program on the interfaces.

    Several, if starts were interrupted before they attached their program.
    """
    if not (bpf_dir / HANDLERS).exists():
        return
    _replaced(bpf_dir).mkdir(mode=0o700, exist_ok=True)
    os.link(bpf_dir / HANDLERS, _replaced(bpf_dir) / f"{HANDLERS}-{(bpf_dir / HANDLERS).lstat().st_ino}")


def forget_replaced(bpf_dir: Path) -> None:
    """No interface has the program any more that the pinned one replaced."""
    _remove_tree(_replaced(bpf_dir))


def _move_into(building: Path, bpf_dir: Path, maps: Mapping[str, MapLayout]) -> None:
    """Replace maps, then the program, then its description: if interrupted before, the next start compiles again."""
    present = set(os.listdir(bpf_dir))  # noqa: PTH208 (names are wanted)
    for name in maps:
        if name not in present or (building / name).stat().st_ino != (bpf_dir / name).stat().st_ino:
            (building / name).rename(bpf_dir / name)
    (building / PROGRAM).rename(bpf_dir / PROGRAM)
    (building / BUILD_LINK).rename(bpf_dir / BUILD_LINK)
    for name in present - maps.keys() - {PROGRAM, BUILD_LINK}:
        (bpf_dir / name).unlink()


def _swap(building: Path, bpf_dir: Path) -> None:
    if bpf_dir.is_dir():
        bpf_dir.rename(_old(bpf_dir))
    building.rename(bpf_dir)


def _run_child(build: Build, directory: Path, known: Mapping[str, str], working: Callable[[], None]) -> dict[str, MapLayout]:
    """The maps that the child has created or reused in `directory`; the program is pinned there too."""
    while True:
        answer, log = _ask_child(build, directory, known, working)
        error = answer.get("error")
        if error is None:
            return {name: MapLayout(**fields) for name, fields in answer["maps"].items()}
        unfit = directory / error["map"]
        if error["kind"] != "map" or error["map"] not in RESETTABLE or not unfit.exists():
            raise _child_error(build, error, log)
        unfit.unlink()
        for name in RESETTABLE - {"counters"}:  # their entries are not missed, and each attempt compiles the program again
            (directory / name).unlink(missing_ok=True)


def _ask_child(
    build: Build, directory: Path, known: Mapping[str, str], working: Callable[[], None]
) -> tuple[dict[str, Any], str]:
    """The answer of the child, and its output on stderr."""
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
            done = child.run(
                [sys.executable, "-m", "bpf.loading.compile"],
                json.dumps(request).encode(),
                {**os.environ, "PYTHONPATH": search},
                working,
            )
        except child.Hangs as error:
            raise PlaneError(
                f"compiling the data plane was stopped: {error}; see whether the machine is short of memory"
            ) from None
    log = done.stderr.decode(errors="replace")
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        end = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        words = _compiler_words(log) or "none; is there enough memory? LLVM needs 100 MB"
        raise PlaneError(f"the compile child exited with {end} and no answer; its output: {words}", log) from error
    return answer, log


def _child_error(build: Build, error: Mapping[str, str], log: str) -> PlaneError:
    message = error["message"]
    if error["kind"] == "map":
        return PlaneError(f"the pins in {build.bpf_dir} do not match this version of xlb: {message}; {_REMEDY}")
    if error["kind"] == "compile":
        message = f"compiling the data plane failed: {_compiler_words(log) or message}"
    if error["kind"] == "load":
        message = f"the kernel refused the data plane: {_verifier_error(log) or message}"
    return PlaneError(message, log)


def _compiler_words(log: str) -> str:
    """The first error in the output of clang; without one, its last lines, e.g. of LLVM that ends for lack of memory."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if " error: " in line] or [line for line in lines if "error" in line.lower()]
    words = errors[0] if errors else "; ".join(lines[-LAST_LINES:])
    return words if len(words) <= MAX_WORDS else words[: MAX_WORDS - 1] + "…"


def excerpt(log: str) -> str:
    """The part of a compiler's or verifier's output that people need: from the first error of the compiler on, else its end."""
    lines = log.splitlines()
    first = next((number for number, line in enumerate(lines) if " error: " in line), max(0, len(lines) - MAX_LOG_LINES))
    return "\n".join(line[:MAX_WORDS] for line in lines[first : first + MAX_LOG_LINES])


def _verifier_error(log: str) -> str:
    """The error of the verifier: the last line before its statistics."""
    noise = ("processed ", "HINT:", "verification time", "stack depth")
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith(noise)]
    return lines[-1] if lines else ""


# --- privilege -----------------------------------------------------------------------------------------------


def _check_privilege() -> None:
    status = Path("/proc/self/status").read_text()
    held = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    enough = held >> _CAP_SYS_ADMIN & 1 or all(held >> number & 1 for number in (_CAP_BPF, _CAP_PERFMON))
    if not enough or not held >> _CAP_NET_ADMIN & 1:
        raise PlaneError(_privilege_message())


def _privilege_message() -> str:
    return "loading the data plane needs root, or the capabilities CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"


def _ms_since(started: float) -> float:
    return (time.monotonic() - started) * 1000

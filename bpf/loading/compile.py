"""The compile child: `python -m bpf.loading.compile` compiles, loads and pins the data plane into one directory, then exits.

A separate process, because LLVM takes 100 MB and a compiler error must not affect a running node. The only module that
imports bcc. It reads one request, a JSON document, from stdin and writes one answer to stdout; messages of clang and the
verifier go to stderr. It reuses maps that are already pinned in the directory if their layouts are equal, and on failure
removes the pins that it created. Must not know running nodes: loader.py decides about them.

Request: pins (directory), max_flows, max_embryonic (connections), features ({name: bool}), headers (an empty directory
for the header tree), known ({map: fingerprint} of the pins), load (false: compile only), source (the C file, default
xlb.c).
Answer: {"maps": {name: layout}, "kept": [names]} or {"error": {"kind": …, "message": …, "map": …}} with kind one of
missing, compile, map (a pinned map does not match the source), load (the verifier rejected the program).
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from bpf import constants, libbpf
from bpf.clock import coarse_step_ns
from bpf.loading import btf
from bpf.loading.flatten import flatten
from bpf.loading.headers import compiler_flags, make_header_tree
from bpf.maps.layout import MapLayout

MIN_RECENT = 64
SOURCE = Path(__file__).parents[1] / "program" / "xlb.c"
PROGRAM = "xlb"
NICE = 10
"""Of this process: where xlbd has no real-time priority, its heartbeats go first."""
HANDLERS = "handlers"
"""The map of the programs that the entry program calls."""


class Refused(Exception):
    """The request fails; `kind` and `map_name` are those of the answer."""

    def __init__(self, kind: str, message: str, map_name: str = "") -> None:
        super().__init__(message)
        self.kind, self.map_name = kind, map_name


def c_constants() -> list[str]:
    """`-D` flags for all numbers and enum members of `bpf.constants`, e.g. -DMODE_SNAT=0, -DCOUNTER_PASS_NOT_IP=0."""
    numbers = {name: value for name, value in vars(constants).items() if name.isupper() and isinstance(value, int)}
    flags = [f"-D{name}={value}{'ULL' if value >= 1 << 31 else ''}" for name, value in numbers.items()]
    for kind in vars(constants).values():
        if isinstance(kind, type) and issubclass(kind, enum.IntEnum | enum.IntFlag):
            prefix = "".join("_" + c if c.isupper() else c for c in kind.__name__).lstrip("_").upper()
            flags += [f"-D{prefix}_{member.name}={int(member)}" for member in kind]
    flags += [f"-DCOUNTER_{counter.name.upper()}={number}" for number, counter in enumerate(constants.COUNTERS)]
    flags.append(f"-DCOUNTER_COUNT={len(constants.COUNTERS)}")
    flags.append(f"-DHANDLER_COUNT={len(constants.Handler)}")
    flags.append(f"-DCLOCK_LAG_NS={3 * coarse_step_ns()}ULL")
    return flags


def c_sizes(max_flows: int, max_embryonic: int, features: dict[str, bool]) -> list[str]:
    """`-D` flags for the settings of a node. A feature that is off is not defined, so that #if and #ifdef both work."""
    chosen = [f"-D{name.upper()}=1" for name, on in sorted(features.items()) if on]
    parts, shift = recent_sizes(max_flows, libbpf.possible_cpus())
    sizes = {"MAX_FLOWS": max_flows, "MAX_EMBRYONIC": max_embryonic, "RECENT_PARTS": parts, "RECENT_SHIFT": shift}
    return [*(f"-D{name}={size}" for name, size in sizes.items()), *chosen]


def recent_sizes(max_flows: int, cpus: int) -> tuple[int, int]:
    """Copies of flows: the number of parts, one for each CPU, and the binary logarithm of the copies in each.

    Together a quarter of max_flows, 48 MB for a million with both families, or MIN_RECENT for each CPU.
    """
    parts = 1 << (cpus - 1).bit_length()
    return parts, max(MIN_RECENT, max_flows // 4 // parts).bit_length() - 1


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Execute the request. Raises Refused after removing the pins it created."""
    pins = Path(request["pins"])
    before = {pin.name for pin in pins.iterdir()}
    try:
        return _build(request, pins, before)
    except BaseException:
        for pin in pins.iterdir():
            if pin.name not in before:
                pin.unlink()
        raise


def _build(request: dict[str, Any], pins: Path, before: set[str]) -> dict[str, Any]:
    bcc = _import_bcc()
    module = _compile(bcc, request, [])
    maps = _describe(bcc.lib, module.module)
    kept = _check_kept(bcc.lib, module.module, maps, before, request.get("known", {}))
    if request.get("load", True):
        try:
            entry = _load(bcc, module, HANDLERS in maps, request.get("features", {}))
        except OSError as error:
            raise _refused_by_verifier(bcc, request, error) from error
        libbpf.obj_pin(entry, pins / PROGRAM)
    return {"maps": {name: dataclasses.asdict(each) for name, each in maps.items()}, "kept": kept}


def _load(bcc: Any, module: Any, has_handlers: bool, features: dict[str, bool]) -> int:
    """Load the entry program, and before it the ones that it calls; they live in the map of handlers.

    Not by bcc, which has no type information of a program without debug information. Raises OSError.
    """
    called = _programs(has_handlers, features)
    content, types = btf.program_types([PROGRAM, *called.values()])
    known = _load_types(content)

    def load(name: str) -> int:
        function = libbpf.Function(known, types[name]) if known is not None else None
        return libbpf.xdp_load(name, module.dump_func(name.encode()), function)

    for handler, name in called.items():
        module[HANDLERS][ctypes.c_int(handler)] = ctypes.c_int(load(name))
    return load(PROGRAM)


def _programs(has_handlers: bool, features: dict[str, bool]) -> dict[constants.Handler, str]:
    """The names of the programs that the entry program calls."""
    optional = constants.OPTIONAL_HANDLERS
    wanted = [each for each in constants.Handler if has_handlers and features.get(optional.get(each, ""), each not in optional)]
    return {each: f"{PROGRAM}_{each.name.lower()}" for each in wanted}


def _load_types(content: bytes) -> int | None:
    """None: this kernel takes none. The program works without; `xlbctl doctor` reports that nothing can attach to it."""
    try:
        return libbpf.btf_load(content)
    except OSError as error:
        print(f"the program has no type information: {error}", file=sys.stderr)
        return None


def _compile(bcc: Any, request: dict[str, Any], more_flags: list[str]) -> Any:
    """A bcc module of the source; its maps are open, and pinned if they were not."""
    sizes = c_sizes(request["max_flows"], request["max_embryonic"], request.get("features", {}))
    flags = [*compiler_flags(), *c_constants(), *sizes, f'-DPINS="{request["pins"]}"', *more_flags]
    with tempfile.TemporaryDirectory(prefix="xlb-headers-", dir=request.get("headers")) as tree:
        make_header_tree(Path(tree))
        os.environ["BCC_KERNEL_SOURCE"] = tree
        try:
            return bcc.BPF(text=flatten(Path(request.get("source", SOURCE))), cflags=flags)
        except Exception as error:
            raise Refused("compile", str(error)) from error


def _refused_by_verifier(bcc: Any, request: dict[str, Any], error: Exception) -> Refused:
    """Load again with debug information, so that the verifier's log quotes the C lines."""
    try:
        module = _compile(bcc, request, ["-g"])
        for name in _programs(HANDLERS in _describe(bcc.lib, module.module), request.get("features", {})).values():
            module.load_func(name, bcc.BPF.XDP)  # bcc passes what clang knows of the lines to the verifier
        module.load_func(PROGRAM, bcc.BPF.XDP)
    except Exception as again:
        return Refused("load", str(again))
    return Refused("load", str(error))


def _import_bcc() -> Any:
    if "/usr/lib/python3/dist-packages" not in sys.path:
        sys.path.append("/usr/lib/python3/dist-packages")  # a virtual environment may exclude Debian's packages
    try:
        import bcc

        return bcc if hasattr(bcc, "BPF") else _wrong_bcc()
    except ImportError as error:
        raise Refused("missing", f"bcc for Python is missing ({error}): apt install python3-bpfcc") from error


def _wrong_bcc() -> Any:
    raise Refused("missing", "the Python module bcc is not the BPF compiler: pip uninstall bcc, apt install python3-bpfcc")


def _describe(lib: Any, module: Any) -> dict[str, MapLayout]:
    """The layout of each map, as clang laid out its structs."""
    lib.bpf_num_tables.restype, lib.bpf_num_tables.argtypes = ctypes.c_size_t, (ctypes.c_void_p,)
    lib.bpf_table_name.restype = ctypes.c_char_p
    for function in (lib.bpf_table_name, lib.bpf_table_key_size_id, lib.bpf_table_leaf_size_id):
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    maps = {}
    for number in range(lib.bpf_num_tables(module)):
        name = lib.bpf_table_name(module, number)
        kind = lib.bpf_table_type_id(module, number)
        is_ring = kind == libbpf.MapType.RINGBUF
        maps[name.decode()] = MapLayout(
            type=kind,
            max_entries=lib.bpf_table_max_entries_id(module, number),
            key_size=0 if is_ring else lib.bpf_table_key_size_id(module, number),
            value_size=0 if is_ring else lib.bpf_table_leaf_size_id(module, number),
            key=json.loads(lib.bpf_table_key_desc(module, name)),
            value=json.loads(lib.bpf_table_leaf_desc(module, name)),
            meaning=" ".join(counter.name for counter in constants.COUNTERS) if name == b"counters" else "",
        )
    return maps


def _check_kept(lib: Any, module: Any, maps: dict[str, MapLayout], before: set[str], known: dict[str, str]) -> list[str]:
    """Names of the maps that were pinned before. Raises Refused if one of them does not match the source."""
    kept = sorted(before & maps.keys())
    for name in kept:
        wanted, found = maps[name], libbpf.map_info(lib.bpf_table_fd(module, name.encode()))
        now = (wanted.type, wanted.key_size, wanted.value_size, wanted.max_entries)
        was = (found.type, found.key_size, found.value_size, found.max_entries)
        labels = ("map type", "bytes of key", "bytes of value", "entries")
        differences = [f"{label} {a}, now {b}" for label, a, b in zip(labels, was, now, strict=True) if a != b]
        if not differences and known.get(name, wanted.fingerprint()) != wanted.fingerprint():
            differences = ["other fields of the same total size"]
        if differences:
            raise Refused("map", f"map {name} has {'; '.join(differences)}", name)
    return kept


def _prepare_process() -> None:
    """Exit when the parent does, give way to it, and remove the limit on map memory of kernels before 5.11."""
    os.nice(NICE)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return  # not permitted; newer kernels do not need it


if __name__ == "__main__":
    _prepare_process()
    answer_fd = os.dup(1)
    os.dup2(2, 1)  # only the answer goes to stdout
    try:
        answer = main(json.load(sys.stdin))
    except Refused as refusal:
        answer = {"error": {"kind": refusal.kind, "message": str(refusal), "map": refusal.map_name}}
    os.write(answer_fd, json.dumps(answer).encode())
    sys.exit(1 if "error" in answer else 0)

"""Attaches the pinned program to interfaces and detaches it, and never touches another XDP program.

Decides native or generic mode, and whether a program is xlb's. Acts in the network namespace of the calling thread. Must not
know the maps, nor how the program was built.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bpf import libbpf, xdp
from bpf.dataplane import PlaneError
from bpf.loading.loader import PROGRAM, capture_dir, program_path
from bpf.xdp import AttachMode, XdpState

Mode = Literal["auto", "native", "generic"]

_FLAGS = {AttachMode.NATIVE: xdp.XDP_FLAGS_DRV_MODE, AttachMode.GENERIC: xdp.XDP_FLAGS_SKB_MODE}
_WANTED = {"native": AttachMode.NATIVE, "generic": AttachMode.GENERIC}
_NO_FALLBACK = frozenset({errno.EPERM, errno.ENODEV, errno.EEXIST, errno.EBUSY, errno.ENOMEM})
_SIOCETHTOOL, _ETHTOOL_GDRVINFO = 0x8946, 3


@dataclass(frozen=True, slots=True)
class Attachment:
    """How the program is attached to an interface. reason: why not in native mode, or empty; driver: "" if unknown.

    device: of a VLAN device the interface below it that has the program; empty: the interface itself.
    """

    interface: str
    mode: Literal["native", "generic"]
    driver: str
    reason: str
    device: str = ""


def attach(bpf_dir: Path, interfaces: Sequence[str], xdp_mode: Mode = "auto") -> dict[str, Attachment]:
    """Attach the program pinned in bpf_dir to every interface; an older program of xlb is replaced atomically.

    auto: native if the drivers of all interfaces support it, else generic on all: a native program cannot send by an interface
    whose driver has no native XDP. Idempotent. An interface that has xlb attached in a permitted mode keeps the mode.
    Raises PlaneError, with all interfaces unchanged, if one does not exist, has another XDP program, or does not support the
    mode.
    """
    ours = _open_program(bpf_dir)
    before: dict[str, tuple[int, XdpState]] = {}
    done: dict[str, Attachment] = {}
    try:
        own_id = libbpf.program_info(ours).id
        for name in interfaces:
            before[name] = _checked_state(name, own_id)
        for name, (index, state) in before.items():
            done[name] = _attach_one(name, index, state, ours, own_id, xdp_mode)
        if xdp_mode == "auto":
            _level(done, before, ours)
    except PlaneError:
        for name in done:
            index, state = before[name]
            if state.program_id == 0:
                _remove(index, xdp.query(index))
        raise
    finally:
        os.close(ours)
    return done


def detach(bpf_dir: Path, interfaces: Sequence[str]) -> list[str]:
    """Detach xlb from the interfaces; returns those that had it. Skips missing interfaces and other programs."""
    detached = []
    own_id = _own_id(bpf_dir)
    for name in interfaces:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            continue
        state = xdp.query(index)
        if state.program_id and is_ours(state.program_id, own_id) and state.mode in _FLAGS:
            _remove(index, state)
            detached.append(name)
    return detached


def own_program(bpf_dir: Path) -> int:
    """Id of the pinned program, 0 if there is none."""
    return _own_id(bpf_dir)


def name_of(program_id: int) -> tuple[str, bool]:
    """The name of a loaded program, and whether it is a build of xlb; "" once it is unloaded."""
    name = _program_name(program_id)
    return name, name == PROGRAM


def attached(bpf_dir: Path, interfaces: Sequence[str]) -> dict[str, Attachment | None]:
    """How the pinned program, or that of a capture, is attached to each interface now, None if it is not."""
    own = {_own_id(bpf_dir), _own_id(capture_dir(bpf_dir))}
    found: dict[str, Attachment | None] = {}
    for name in interfaces:
        found[name] = None
        try:
            state = xdp.query(socket.if_nametoindex(name))
        except OSError:
            continue
        if state.program_id and state.program_id in own:
            found[name] = _attachment(name, state.mode, "")
    return found


def is_ours(program_id: int, own_id: int) -> bool:
    """Whether a loaded program is the pinned one, or another build of xlb."""
    return program_id == own_id or _program_name(program_id) == PROGRAM


def driver(interface: str) -> str:
    """The name of the interface's driver, "" if there is none or the interface does not exist."""
    information = array.array("B", struct.pack("=I", _ETHTOOL_GDRVINFO) + bytes(192))
    address, _ = information.buffer_info()
    request = struct.pack("16sP", interface.encode()[:15], address) + bytes(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control.fileno(), _SIOCETHTOOL, request)
        except OSError:
            return ""
    return information.tobytes()[4:36].split(b"\0")[0].decode(errors="replace")


def _open_program(bpf_dir: Path) -> int:
    try:
        return libbpf.obj_get(program_path(bpf_dir))
    except OSError as error:
        raise PlaneError(f"no program is pinned in {bpf_dir}: {os.strerror(error.errno or 0)}") from error


def _own_id(bpf_dir: Path) -> int:
    """Id of the pinned program, 0 if there is none."""
    try:
        fd = libbpf.obj_get(program_path(bpf_dir))
    except OSError:
        return 0
    try:
        return libbpf.program_info(fd).id
    finally:
        os.close(fd)


def _checked_state(name: str, own_id: int) -> tuple[int, XdpState]:
    """Index and XDP state of an interface that xlb may use."""
    try:
        index = socket.if_nametoindex(name)
    except OSError as error:
        raise PlaneError(f"interface {name} does not exist: correct data.interfaces in the node file") from error
    state = xdp.query(index)
    if state.mode in (AttachMode.SEVERAL, AttachMode.OFFLOADED) or (state.program_id and not is_ours(state.program_id, own_id)):
        program = _program_name(state.program_id) or "unnamed"
        raise PlaneError(
            f"interface {name} already has the XDP program {state.program_id} ({program}), "
            f"which is not xlb's: stop the process that attached it, or remove it with: ip link set dev {name} xdp off"
        )
    return index, state


def _program_name(program_id: int) -> str:
    try:
        fd = libbpf.program_by_id(program_id)
    except OSError:
        return ""  # unloaded meanwhile, or not permitted
    try:
        return libbpf.program_info(fd).name
    finally:
        os.close(fd)


def _attach_one(name: str, index: int, state: XdpState, ours: int, own_id: int, xdp_mode: Mode) -> Attachment:
    wanted = _WANTED.get(xdp_mode)
    if state.program_id and wanted in (None, state.mode):
        if state.program_id != own_id:
            _replace(name, index, state, ours)
        kept = "keeps the mode it was attached in; detach it to try native mode again"
        return _attachment(name, state.mode, kept if wanted is None and state.mode is AttachMode.GENERIC else "")
    if state.program_id:
        _remove(index, state)
    try:
        return _attach_fresh(name, index, ours, xdp_mode)
    except PlaneError:
        if state.program_id:
            xdp.attach(index, ours, _FLAGS[state.mode])
        raise


def _level(done: dict[str, Attachment], before: Mapping[str, tuple[int, XdpState]], ours: int) -> None:
    """Where one interface is in generic mode, put the native ones in generic mode too; changes `done`."""
    generic = next((each for each in done.values() if each.mode == "generic"), None)
    if generic is None:
        return
    for name, attachment in done.items():
        if attachment.mode != "native":
            continue
        index, _ = before[name]
        _remove(index, xdp.query(index))
        try:
            _attach_or_explain(name, index, ours, xdp.XDP_FLAGS_UPDATE_IF_NOEXIST | xdp.XDP_FLAGS_SKB_MODE)
        except PlaneError:
            xdp.attach(index, ours, xdp.XDP_FLAGS_DRV_MODE)
            raise
        reason = f"{generic.interface} (driver {generic.driver or 'unknown'}) is in generic mode, and packets pass between them"
        done[name] = _attachment(name, AttachMode.GENERIC, reason)


def _attach_fresh(name: str, index: int, ours: int, xdp_mode: Mode) -> Attachment:
    """Attach to an interface without a program."""
    new = xdp.XDP_FLAGS_UPDATE_IF_NOEXIST
    if xdp_mode == "generic":
        _attach_or_explain(name, index, ours, new | xdp.XDP_FLAGS_SKB_MODE)
        return _attachment(name, AttachMode.GENERIC, "the node file sets generic mode")
    try:
        xdp.attach(index, ours, new | xdp.XDP_FLAGS_DRV_MODE)
        return _attachment(name, AttachMode.NATIVE, "")
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        if xdp_mode == "native" or error.errno in _NO_FALLBACK:
            raise _explained(name, error, "native ") from error
    _attach_or_explain(name, index, ours, new | xdp.XDP_FLAGS_SKB_MODE)
    return _attachment(name, AttachMode.GENERIC, f"native mode failed: {reason}")


def _attach_or_explain(name: str, index: int, ours: int, flags: int) -> None:
    try:
        xdp.attach(index, ours, flags)
    except OSError as error:
        raise _explained(name, error, "") from error


def _explained(name: str, error: OSError, mode: str) -> PlaneError:
    if error.errno == errno.EPERM:
        return PlaneError(f"attaching XDP to {name} needs root or CAP_NET_ADMIN and CAP_BPF")
    remedy = ""
    if mode:
        remedy = '; set data.xdp_mode = "auto" or "generic" in the node file, or remove the cause'
    return PlaneError(
        f"{mode}XDP on interface {name} (driver {driver(name) or 'unknown'}) failed: "
        f"{error.strerror or os.strerror(error.errno or 0)}{remedy}"
    )


def _replace(name: str, index: int, state: XdpState, ours: int) -> None:
    """Replace an older xlb by this one atomically."""
    old = libbpf.program_by_id(state.program_id)
    try:
        xdp.attach(index, ours, _FLAGS[state.mode], old)
    except OSError as error:
        raise _explained(name, error, "") from error
    finally:
        os.close(old)


def _remove(index: int, state: XdpState) -> None:
    """Detach the program of `state`, unless it was replaced meanwhile."""
    old = libbpf.program_by_id(state.program_id)
    try:
        xdp.attach(index, -1, _FLAGS[state.mode], old)
    finally:
        os.close(old)


def _attachment(name: str, mode: AttachMode, reason: str) -> Attachment:
    return Attachment(name, "native" if mode is AttachMode.NATIVE else "generic", driver(name), reason)

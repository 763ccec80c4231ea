"""What a node needs of its machine, whether its daemon runs or not: privileges, kernel, bpffs, compiler, clock. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ctl.diagnosis.finding import Finding, Severity, judged, ok

MIN_KERNEL = (5, 18)  # bpf_xdp_load_bytes; everything else the data plane uses is older
_CAPABILITIES: Mapping[str, int] = {"CAP_NET_ADMIN": 12, "CAP_BPF": 39}
_CAP_SYS_ADMIN = 21  # includes CAP_BPF


@dataclass(frozen=True, slots=True)
class Machine:
    """What was observed. bcc, headers: whether the package is installed. clock: the error of reading it, or empty.

    untraceable: why xdpdump and pwru cannot attach to the pinned program, and whether another build helps; None: unknown.
    """

    capabilities: int  # the effective set of capabilities(7)
    release: str
    bpf_dir: str
    on_bpffs: bool
    bcc: bool
    headers: bool
    clock_synchronised: bool
    clock: str = ""
    untraceable: tuple[str, bool] | None = None


def examine(machine: Machine, program: str) -> Iterator[Finding]:
    """program: what needs the privileges, "xlbd" or "xlbctl doctor"."""
    yield _privileges(machine, program)
    yield _kernel(machine)
    remedy = "mount -t bpf bpf /sys/fs/bpf"
    message = f"{machine.bpf_dir} is on a bpffs" if machine.on_bpffs else f"{machine.bpf_dir} is not on a bpffs"
    yield judged("bpffs", machine.on_bpffs, message, remedy)
    yield _compiler(machine)
    yield _clock(machine)
    if machine.untraceable is not None:
        yield _tracing(*machine.untraceable)


def _privileges(machine: Machine, program: str) -> Finding:
    held = machine.capabilities
    missing = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if held >> _CAP_SYS_ADMIN & 1:
        missing = [name for name in missing if name != "CAP_BPF"]
    if not missing:
        return ok("privileges", f"{program} has the capabilities it needs")
    remedy = "run xlbd as root or by its systemd unit" if program == "xlbd" else "run it as root: sudo xlbctl doctor"
    return Finding("privileges", Severity.FAIL, f"{program} lacks {', '.join(missing)}", remedy)


def _kernel(machine: Machine) -> Finding:
    found = re.match(r"(\d+)\.(\d+)", machine.release)
    good = found is not None and (int(found[1]), int(found[2])) >= MIN_KERNEL
    return judged("kernel", good, f"Linux {machine.release}", f"use Linux {'.'.join(map(str, MIN_KERNEL))} or newer")


def _compiler(machine: Machine) -> Finding:
    missing = [name for name, there in (("python3-bpfcc", machine.bcc), ("linux-libc-dev", machine.headers)) if not there]
    if not missing:
        return ok("compiler", "bcc and the uapi headers are installed")
    message = f"{' and '.join(missing)} missing: an upgrade could not be compiled"
    return Finding("compiler", Severity.FAIL, message, f"apt install {' '.join(missing)}")


def _clock(machine: Machine) -> Finding:
    """Leases do not depend on the wall clock, logs and people do."""
    if machine.clock_synchronised:
        return ok("clock", "synchronised")
    message = machine.clock or "not synchronised: the times in the logs of two nodes cannot be compared"
    return Finding("clock", Severity.WARN, message, "install chrony or enable systemd-timesyncd")


def _tracing(why: str, rebuild: bool) -> Finding:
    """`xlbctl capture` needs none of it."""
    if not why:
        return ok("tracing", "xdpdump and pwru can attach to the program")
    message = f"xdpdump and pwru cannot attach to the program: {why}"
    if rebuild:
        return Finding(
            "tracing", Severity.WARN, message, "systemctl restart xlbd: it replaces the program and keeps connections"
        )
    return Finding("tracing", Severity.INFO, message, "xlbctl capture works without; see the lockdown of this kernel")

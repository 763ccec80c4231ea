"""`xlbctl doctor` while no daemon answers: what can be seen of this node from its files and its kernel.

Looks, changes nothing. Decides which checks make sense without a daemon; what they mean is decided in `ctl.diagnosis`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from bpf.dataplane import PlaneError
from bpf.kernel import attach
from bpf.loading import loader
from bpf.loading.loader import Build
from ctl.diagnosis import interfaces, machine
from ctl.diagnosis.finding import Finding, Severity, from_problem, ok
from ctl.diagnosis.kernel import machine as this_machine
from ctl.diagnosis.kernel import rulesets
from ctl.errors import XlbError
from ctl.network import vlans
from ctl.network.kernel.kernel_network import KernelNetwork
from ctl.state import node_file
from ctl.state.cluster_file import ClusterFile
from ctl.state.node_file import NodeSettings

START = "systemctl start xlbd; journalctl -u xlbd has the cause if it does not start"
DEFAULT_BPF_DIR = Path("/sys/fs/bpf/xlb")


def examine(path: Path, why: str) -> list[Finding]:
    """Every check, in the order in which one would look. path: the node file. why: what asking the daemon came to."""
    found = [Finding("xlbd", Severity.FAIL, why, START)]
    try:
        settings = node_file.load(path)
    except XlbError as error:
        found.append(
            Finding("node file", Severity.FAIL, str(error), f"correct it; xlbd --check-config --config {path} checks it")
        )
        return [*found, *machine.examine(this_machine.observe(DEFAULT_BPF_DIR), "xlbctl doctor")]
    found.append(ok("node file", f"{path} is valid"))
    checks: tuple[Callable[[NodeSettings], Iterator[Finding]], ...] = (_machine, _pins, _network, _firewall, _state)
    for check in checks:
        try:
            found += check(settings)
        except (XlbError, PlaneError, OSError) as error:  # one that cannot be made must not hide the others
            name = check.__name__.strip("_")
            found.append(Finding(name, Severity.FAIL, f"could not be checked: {error}", "run it as root: sudo xlbctl doctor"))
    return found


def _machine(settings: NodeSettings) -> Iterator[Finding]:
    return machine.examine(this_machine.observe(settings.node.bpf_dir), "xlbctl doctor")


def _pins(settings: NodeSettings) -> Iterator[Finding]:
    """Whether xlbd could start with what is pinned."""
    node = settings.node
    build = Build(node.bpf_dir, node.run_dir, settings.data.max_flows)
    try:
        yield ok("pins", loader.describe(build))
    except PlaneError as error:
        yield from_problem("pins", str(error))


def _network(settings: NodeSettings) -> Iterator[Finding]:
    names, generic = settings.data.interfaces, settings.data.xdp_mode.value == "generic"
    with closing(KernelNetwork()) as network:
        links, attached = network.interfaces(), attach.attached(settings.node.bpf_dir, names)
        below = vlans.handled_below(names, links, {attach.own_program(settings.node.bpf_dir)})
        for name in names:
            link, attachment = links.get(name), attached.get(name)
            seen = None
            if link is not None and attachment is not None:
                seen = interfaces.Seen(attachment.mode, link.driver, attachment.reason, link.carrier)
            elif link is not None and name in below:
                seen = interfaces.Seen("native", below[name].driver, "", link.carrier, below[name].name)
            yield interfaces.examine(name, seen, generic)
        problems = network.forwarding_problems(names)
    if problems and not any(attached.values()) and not below:  # xlbd sets them before it attaches the program
        yield Finding("forwarding", Severity.INFO, f"{len(problems)} settings to change", "xlbd changes them when it starts")
        return
    yield from (from_problem("forwarding", problem) for problem in problems)
    if not problems:
        yield ok("forwarding", "the kernel forwards on every data interface")


def _firewall(settings: NodeSettings) -> Iterator[Finding]:
    yield from rulesets.findings(settings.data.interfaces, ())


def _state(settings: NodeSettings) -> Iterator[Finding]:
    try:
        pair = ClusterFile(settings.node.state_dir).load()
    except XlbError as error:
        yield from_problem("state", str(error))
        return
    yield ok("state", f"in a pair with {pair.peer.name}" if pair else "a single node")

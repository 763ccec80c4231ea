"""Reads the forward hook's rules of nf_tables and of the legacy iptables for `ctl.diagnosis.firewall`. Changes nothing.

Runs nft and iptables-legacy with fixed arguments, for a bounded time, and reads a bounded part of their output: a rule set of
megabytes is read chain by chain, so that the daemon's loop does not wait for one long JSON document.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from bpf.loading.spawn import Process
from ctl.diagnosis import firewall
from ctl.diagnosis.finding import Finding
from ctl.diagnosis.firewall import Rule, Rules, Verdict

BOUND_S = 5.0
MAX_BYTES = 512 * 1024
MAX_CHAINS = 64
_SEARCH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_LEGACY = (
    ("iptables-legacy", 4, Path("/proc/thread-self/net/ip_tables_names")),
    ("ip6tables-legacy", 6, Path("/proc/thread-self/net/ip6_tables_names")),
)


class _CannotTell(Exception):
    """Why there is no answer."""


def findings(interfaces: Sequence[str], addresses: Sequence[str]) -> list[Finding]:
    """What the rule sets do to forwarded packets. addresses: the VIPs; without any, both families count. Blocks."""
    families = frozenset(6 if ":" in address else 4 for address in addresses) or frozenset({4, 6})
    return list(firewall.examine(sources(), interfaces, families))


def sources() -> list[Rules]:
    """Every source of rules on this machine."""
    deadline_s = time.monotonic() + BOUND_S
    return [_nft(deadline_s), *_legacy(deadline_s)]


def _nft(deadline_s: float) -> Rules:
    nft = shutil.which("nft", path=_SEARCH)
    if nft is None:
        return Rules(unknown="nft is not installed", remedy="apt install nftables")
    try:
        hooks = firewall.nft_hooks(_json([nft, "-j", "list", "chains"], deadline_s))
        chains: dict[str, list[Rule]] = {}
        sets = [Rules((hook,), _chains(nft, family, table, hook.chain, deadline_s)) for family, table, hook in hooks]
    except _CannotTell as error:
        return Rules(unknown=str(error), remedy="nft list ruleset shows them")
    for number, source in enumerate(sets):  # chains of different tables may have the same name
        chains |= {f"{number} {name}": _renamed(rules, number) for name, rules in (source.chains or {}).items()}
    renamed = [firewall.Hook(h.label, h.families, f"{n} {h.chain}", h.policy, h.fix) for n, (_, _, h) in enumerate(hooks)]
    return Rules(tuple(renamed), chains)


def _renamed(rules: Sequence[Rule], number: int) -> list[Rule]:
    return [Rule(rule.matches, rule.verdict, f"{number} {rule.target}") for rule in rules]


def _chains(nft: str, family: str, table: str, base: str, deadline_s: float) -> dict[str, list[Rule]]:
    """The rules of a chain and of every chain it leads to."""
    chains: dict[str, list[Rule]] = {}
    waiting = [base]
    while waiting:
        name = waiting.pop()
        if name in chains:
            continue
        if len(chains) >= MAX_CHAINS:
            raise _CannotTell(f"more than {MAX_CHAINS} chains lead from {family} {table} {base}")
        chains[name] = firewall.nft_rules(_json([nft, "-j", "list", "chain", family, table, name], deadline_s))
        waiting += [rule.target for rule in chains[name] if rule.verdict in (Verdict.JUMP, Verdict.GOTO)]
    return chains


def _legacy(deadline_s: float) -> list[Rules]:
    """Only where the kernel has the legacy filter table: listing it would create it."""
    found = []
    for command, family, names in _LEGACY:
        try:
            if "filter" not in names.read_text().split():
                continue
        except OSError:
            continue
        path = shutil.which(command, path=_SEARCH)
        if path is None:
            found.append(
                Rules(unknown=f"{command} is not installed, and the kernel has its filter table", remedy="apt install iptables")
            )
            continue
        try:
            found.append(firewall.iptables(command, family, _output([path, "-S"], deadline_s)))
        except _CannotTell as error:
            found.append(Rules(unknown=str(error), remedy=f"{command} -S FORWARD shows them"))
    return found


def _json(command: Sequence[str], deadline_s: float) -> dict[str, Any]:
    try:
        document = json.loads(_output(command, deadline_s))
    except ValueError as error:
        raise _CannotTell(f"{command[0]} does not print JSON: {error}") from None
    if not isinstance(document, dict):
        raise _CannotTell(f"{command[0]} prints an unknown JSON document")
    return document


def _output(command: Sequence[str], deadline_s: float) -> str:
    """What the command prints. Raises _CannotTell when it fails, or prints or takes too much."""
    shown = " ".join([Path(command[0]).name, *command[1:]])
    try:
        with Path(os.devnull).open("r+b", buffering=0) as nothing, _pipe() as (reading, writing):
            process = Process(command, os.environ, nothing.fileno(), writing.fileno(), nothing.fileno())
            writing.close()
            try:
                return _read(process, reading, deadline_s, shown)
            finally:
                process.end()
    except OSError as error:
        raise _CannotTell(f"{shown} cannot be run: {error.strerror}") from None


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as reading, os.fdopen(write, "wb", buffering=0) as writing:
        yield reading, writing


def _read(process: Process, output: IO[bytes], deadline_s: float, shown: str) -> str:
    watch = select.poll()  # descriptors may be beyond what select() takes
    watch.register(output, select.POLLIN)
    data = b""
    while True:
        if not watch.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
            raise _CannotTell(f"{shown} takes longer than {BOUND_S:g} s")
        piece = output.read(65536)
        if not piece:
            break
        data += piece
        if len(data) > MAX_BYTES:
            raise _CannotTell(f"{shown} prints more than {MAX_BYTES // 1024} KiB")
    if not process.wait(max(0.0, deadline_s - time.monotonic())) or process.exit_status != 0:
        raise _CannotTell(f"{shown} failed")
    return data.decode(errors="replace")

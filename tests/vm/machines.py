"""The two virtual machines that vagrant/rig brought up, and hosts on their data network.

                    xlb-data 10.99.0.0/24 (a bridge of this machine)
       ┌──────────────┬───────────┴─┬──────────────┬──────────────┐
    client .50      lb1 .11       lb2 .12        b1 .21         b2 .22
    namespace      eth1 of a     eth1 of a      namespace      namespace
                 virtual machine

Runs inside the rig's namespaces (`vagrant/rig run`). Machines are reached by ssh over another network; how they are
powered differs between libvirt and plain qemu, and nothing else does.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.rig import Backend
from tests.rig.namespaces import Namespace
from tests.tree import TREE
from tests.wait import wait_until

WORK = TREE / "vagrant" / "work"
DATA_ADDRESS = {"lb1": "10.99.0.11", "lb2": "10.99.0.12"}
BOOT_S = 900
"""Time for a machine to boot and answer ssh, emulated and on a busy host."""


def why_not() -> str:
    """Why the virtual machines cannot be used; empty when they can."""
    if not (WORK / "kind").exists():
        return "the virtual machines are down: make vagrant-up, or make vagrant-test"
    if not Path("/proc/1/cmdline").read_bytes().startswith(b"xlb-rig-holder"):
        return "not inside the virtual machines' namespaces: make vagrant-test"
    return ""


class Machine:
    """A virtual machine with the package installed."""

    def __init__(self, name: str) -> None:
        self.name, self.address = name, DATA_ADDRESS[name]
        control = f"/tmp/xlb-{os.getpid()}-{name}"
        options = ["BatchMode=yes", "ConnectTimeout=10", "ControlMaster=auto", f"ControlPath={control}", "ControlPersist=120"]
        self._ssh = ["ssh", "-F", str(WORK / "ssh-config"), *(f"-o{option}" for option in options), name]

    def run(self, script: str, *, check: bool = True, timeout_s: float = 600, stdin: bytes = b"") -> str:
        """Run a bash script as root; returns its output. Raises AssertionError when `check` and it fails."""
        command = f"sudo bash -euo pipefail -c {shlex.quote(script)}"
        done = subprocess.run([*self._ssh, command], input=stdin, capture_output=True, timeout=timeout_s, check=False)
        if check and done.returncode:
            output = (done.stdout + done.stderr).decode(errors="replace")
            raise AssertionError(f"{self.name}: {script!r} exited {done.returncode}\n{output}")
        return done.stdout.decode(errors="replace")

    def ask(self, *command: str) -> Any:
        """The JSON document that xlbctl prints."""
        return json.loads(self.run(f"xlbctl {shlex.join(command)} --output json"))

    def answers(self) -> bool:
        try:
            return self.run("echo yes", check=False, timeout_s=30).strip() == "yes"
        except subprocess.TimeoutExpired:
            return False

    def copy(self, source: Path, target: str) -> None:
        self.run(f"cat > {shlex.quote(target)}", stdin=source.read_bytes())

    def cut_power(self) -> None:
        """Cut its power: nothing more is written, closed or sent."""
        self.disconnect()
        if _by_libvirt():
            _virsh("destroy", f"xlb_{self.name}")
        else:
            pid = int(Path(f"/run/{self.name}.pid").read_text())
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), f"{self.name} is off")

    def power_on(self) -> None:
        """Start it and wait until it answers."""
        if _by_libvirt():
            _virsh("start", f"xlb_{self.name}")
        else:
            subprocess.run(["bash", WORK / f"{self.name}.start"], check=True, timeout=30)
        wait_until(self.answers, f"{self.name} answers", BOOT_S, every_s=1)

    def disconnect(self) -> None:
        """Close the shared connection, which would hang after the machine is off."""
        subprocess.run([*self._ssh[:-1], "-O", "exit", self.name], capture_output=True, check=False, timeout=30)


class DataNetwork:
    """Client and backends as namespaces with a cable to the machines' data bridge."""

    def __init__(self) -> None:
        self._bridge = (WORK / "xlb-data.bridge").read_text().strip()
        self._namespaces: list[Namespace] = []
        self.client = self._host("client", "10.99.0.50")
        self.backends = [Backend(name, self._host(name, address), address, "") for name, address in _BACKENDS.items()]
        for backend in self.backends:
            backend.start()

    def _host(self, name: str, address: str) -> Namespace:
        namespace = Namespace(name)
        self._namespaces.append(namespace)
        port = f"vm-{name}"
        for command in (
            f"link add {port} type veth peer name eth0 netns {namespace.path}",
            f"link set {port} master {self._bridge} up",
        ):
            subprocess.run(["ip", *command.split()], check=True, timeout=30)
        subprocess.run(["ethtool", "-K", port, "tx", "off", "gro", "off"], check=True, capture_output=True, timeout=30)
        namespace.plain_checksums("eth0")
        namespace.ip("link set eth0 up", f"addr add {address}/24 dev eth0")
        return namespace

    def close(self) -> None:
        for backend in self.backends:
            backend.kill()
        for namespace in self._namespaces:
            namespace.close()


_BACKENDS = {"b1": "10.99.0.21", "b2": "10.99.0.22"}


def _by_libvirt() -> bool:
    return (WORK / "kind").read_text().strip() == "vagrant"


def _virsh(*arguments: str) -> None:
    subprocess.run(
        ["virsh", "-q", *arguments], check=True, timeout=60, env={**os.environ, "LIBVIRT_DEFAULT_URI": "qemu:///system"}
    )

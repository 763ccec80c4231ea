"""A real OpenSSH server in a namespace of the rig, with a root password of its own.

It sees copies of /etc/passwd and /etc/shadow in a private mount namespace: the machine's own are not touched, and the
mounts disappear with the process.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.rig.namespaces import Namespace
from tests.wait import wait_until

SSHD = Path("/usr/sbin/sshd")

_SCRIPT = """
set -e
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/shadow" /etc/shadow
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/sshd
exec "$2" -D -e -f "$1/sshd_config"
"""


def why_no_sshd() -> str:
    """Why the server cannot run here; empty if it can."""
    missing = [str(path) for path in (SSHD,) if not path.exists()]
    missing += [tool for tool in ("ssh-keygen", "openssl", "unshare") if shutil.which(tool) is None]
    return f"missing: {', '.join(missing)} (packages openssh-server, openssh-client, openssl)" if missing else ""


class SshServer:
    """Listens at address:22 of a namespace. Use as a context manager."""

    def __init__(self, namespace: Namespace, address: str, directory: Path, password: str) -> None:
        self.namespace, self.address, self.directory = namespace, address, directory
        self.key = directory / "host_key"
        directory.mkdir(mode=0o700)
        self.new_key()
        (directory / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nsshd:x:65534:65534::/run/sshd:/usr/sbin/nologin\n")
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"], input=password, text=True, check=True, capture_output=True
        )
        (directory / "shadow").write_text(f"root:{hashed.stdout.strip()}:19000:0:99999:7:::\nsshd:!:19000::::::\n")
        (directory / "sshd_config").write_text(
            f"ListenAddress {address}\nHostKey {self.key}\nPidFile none\nUsePAM no\nPermitRootLogin yes\n"
            "PasswordAuthentication yes\nKbdInteractiveAuthentication no\nPubkeyAuthentication no\nStrictModes no\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def new_key(self) -> None:
        """Another host key, as a reinstalled machine has."""
        for path in (self.key, self.key.with_suffix(".pub")):
            path.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)

    @property
    def public_key(self) -> str:
        """As in known_hosts, without the host."""
        return " ".join(self.key.with_suffix(".pub").read_text().split()[:2])

    @property
    def fingerprint(self) -> str:
        done = subprocess.run(["ssh-keygen", "-lf", str(self.key)], check=True, text=True, capture_output=True)
        return done.stdout.split()[1]

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = self.namespace.popen(
                ["unshare", "--mount", "sh", "-c", _SCRIPT, "sshd", str(self.directory), str(SSHD)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(lambda: self._ended() or self.namespace.call(self._listens), "sshd listens")
            assert not self._ended(), "sshd exited"
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(self.directory / 'log').read_text()}") from None

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def _listens(self) -> bool:
        with socket.socket() as knock:
            knock.settimeout(0.5)
            return knock.connect_ex((self.address, 22)) == 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

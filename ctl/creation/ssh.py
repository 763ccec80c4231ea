"""The peer over SSH: whose host key it is, the login, and commands there.

Decides when a host key is accepted and which message each failure has. Must not know what is run there. asyncssh takes
half a second to import, so this module is imported at the first creation.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctl.creation.secret import Secret
from ctl.errors import Code, XlbError, storage_code

CONNECT_TIMEOUT_S = 15.0
LOGIN_TIMEOUT_S = 90.0  # a login takes an emulated machine some seconds of its processor
KEEPALIVE_S, KEEPALIVES = 10, 6  # a peer that answers none of so many has gone; a command there may take any time
MAX_OUTPUT_BYTES = 32 << 20
SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # old releases name ciphers that the cryptography library calls deprecated
    asyncssh: Any = importlib.import_module("asyncssh")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to log in. local: the address to come from."""

    host: str
    port: int
    local: str
    user: str = "root"

    @property
    def entry(self) -> str:
        """The host as known_hosts has it."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"


@dataclass(frozen=True, slots=True)
class Files:
    """known_hosts: where host keys are known from and remembered. keys: to log in with; None: the user's, and of its agent."""

    known_hosts: Path
    keys: tuple[Path, ...] | None = None

    @classmethod
    def of_user(cls) -> Files:
        """Those of the user of this process."""
        return cls(Path("~/.ssh/known_hosts").expanduser())


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended. `status` 127: there is no such command."""

    status: int
    output: str
    errors: str


class Peer:
    """A login on the peer."""

    def __init__(self, target: Target, connection: Any) -> None:
        self.target = target
        self._connection = connection

    async def run(self, command: str, stdin: str = "", progress: Callable[[str], None] | None = None) -> Done:
        """Run a command to its end; what it needs to keep secret goes in by stdin. progress: gets stderr line by line."""
        try:
            async with self._connection.create_process(command, encoding="utf-8", errors="replace") as process:
                with contextlib.suppress(OSError):  # it has ended without reading
                    process.stdin.write(stdin)
                    process.stdin.write_eof()
                output, errors = await asyncio.gather(_lines(process.stdout), _lines(process.stderr, progress))
                done = await process.wait(check=False)
        except (asyncssh.Error, OSError) as error:
            raise XlbError(f"the connection to {self.target.host} broke: {_reason(error)}", Code.SSH_FAILED) from None
        return Done(127 if done.exit_status is None else done.exit_status, output, errors)


async def _lines(stream: Any, progress: Callable[[str], None] | None = None) -> str:
    lines, size = list[str](), 0
    async for line in stream:
        size += len(line)
        if size > MAX_OUTPUT_BYTES:
            raise XlbError("the peer's answer is too long", Code.SSH_FAILED)
        lines.append(line)
        if progress is not None and line.strip():
            progress(line.rstrip("\n"))
    return "".join(lines)


@contextlib.asynccontextmanager
async def logged_in(target: Target, files: Files, key: Any, secret: Secret) -> AsyncIterator[Peer]:
    """Log in as root at the server with this host key. secret: an empty one, to use SSH keys.

    Raises XlbError with a message for each cause; nothing was changed on the peer then.
    """
    password = secret.take()
    with_password, keys = bool(password), dict[str, Any]()
    if password:
        keys = {"client_keys": None, "agent_path": None}
    elif files.keys is not None:
        keys = {"client_keys": [str(path) for path in files.keys], "agent_path": None}
    try:
        connection = await asyncio.wait_for(
            asyncssh.connect(
                target.host,
                target.port,
                username=target.user,
                password=password or None,
                known_hosts=([key], [], []),
                local_addr=(target.local, 0),
                config=None,
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=KEEPALIVES,
                **keys,
            ),
            LOGIN_TIMEOUT_S,
        )
    except asyncssh.PermissionDenied:
        what = "the password is wrong, or" if with_password else "no key of yours is accepted, or"
        remedy = "try again, or make a token with --token-only and join from there"
        raise XlbError(
            f"{target.host} refuses {target.user}'s login: {what} root may not log in there by SSH; {remedy}",
            Code.SSH_LOGIN_REFUSED,
        ) from None
    except (asyncssh.Error, OSError, TimeoutError, ValueError) as error:  # ValueError: a private key that cannot be read
        raise XlbError(f"cannot log in to {target.host} port {target.port}: {_reason(error)}", Code.SSH_FAILED) from None
    del password
    async with connection:
        yield Peer(target, connection)


async def host_key(target: Target, files: Files, believe: Callable[[str], Awaitable[bool]]) -> Any:
    """The server's host key. believe: asked with the fingerprint of one that is not known; True takes it, and it is remembered.

    Raises XlbError.
    """
    known = _known_keys(target, files)
    algorithms = [name for key in known for name in _algorithms(key)]
    key = await _offered_key(target, algorithms) if algorithms else None
    if key is None:
        key = await _offered_key(target, [])
    if key is None:
        raise XlbError(f"{target.host} port {target.port} shows no host key; is that an SSH server?", Code.SSH_FAILED)
    if key in known:
        return key
    fingerprint = key.get_fingerprint()
    if known:
        remedy = f"if it was reinstalled, remove the old key with: ssh-keygen -R '{target.entry}'"
        raise XlbError(
            f"the host key of {target.host} has changed to {fingerprint}: another machine may intercept; {remedy}",
            Code.HOST_KEY_CHANGED,
        )
    if not await believe(fingerprint):
        where = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
        raise XlbError(
            f"the host key of {target.host} is unknown: {fingerprint}; compare it with what {where} prints there, "
            "then repeat and accept this fingerprint (xlbctl: --accept-host-key)",
            Code.HOST_KEY_UNKNOWN,
        )
    _remember(target, files.known_hosts, key)
    return key


async def _offered_key(target: Target, algorithms: Sequence[str]) -> Any:
    """The server's key, of one of these kinds where given; None when it has none of them."""
    options: dict[str, Any] = {"server_host_key_algs": list(algorithms)} if algorithms else {}
    where = f"{target.host} port {target.port}"
    try:
        return await asyncio.wait_for(
            asyncssh.get_server_host_key(target.host, target.port, local_addr=(target.local, 0), config=None, **options),
            LOGIN_TIMEOUT_S,
        )
    except asyncssh.KeyExchangeFailed:
        return None
    except (asyncssh.Error, OSError, TimeoutError) as error:
        raise XlbError(f"{where} accepts connections, but shows no host key: {_reason(error)}", Code.SSH_FAILED) from None


async def require_server(target: Target) -> None:
    """A plain connection first: a machine that cannot be reached is named soon, and a slow one gets its time.

    Raises XlbError.
    """
    where = f"{target.host} port {target.port}"
    try:
        connected = asyncio.open_connection(target.host, target.port, local_addr=(target.local, 0))
        _, writer = await asyncio.wait_for(connected, CONNECT_TIMEOUT_S)
    except TimeoutError:
        remedy = "check the cable, its address and firewalls"
        raise XlbError(
            f"{where} cannot be reached by SSH: no answer within {CONNECT_TIMEOUT_S:g} s; {remedy}", Code.SSH_FAILED
        ) from None
    except OSError as error:
        remedy = "check the address, and that sshd runs there (--ssh-port names another port)"
        raise XlbError(f"{where} cannot be reached by SSH: {_reason(error)}; {remedy}", Code.SSH_FAILED) from None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _algorithms(key: Any) -> list[str]:
    """The signature algorithms of a known key: an RSA key has several."""
    name = key.get_algorithm()
    return ["rsa-sha2-256", "rsa-sha2-512", name] if name == "ssh-rsa" else [name]


def _known_keys(target: Target, files: Files) -> list[Any]:
    found: list[Any] = []
    for path in (files.known_hosts, SYSTEM_KNOWN_HOSTS):
        try:
            entries = asyncssh.import_known_hosts(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise XlbError(f"cannot read {path}: {error}; correct it, or move it away") from None
        port = None if target.port == 22 else target.port
        found += entries.match(target.host, target.host, port)[0]
    return found


def _remember(target: Target, path: Path, key: Any) -> None:
    line = f"{target.entry} {key.export_public_key('openssh').decode().strip()}\n"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(line)
    except OSError as error:
        raise XlbError(f"cannot remember the host key in {path}: {error.strerror}", storage_code(error)) from None


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {LOGIN_TIMEOUT_S:g} s"
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return " ".join(str(error).split()) or type(error).__name__

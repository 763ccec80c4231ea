"""state_dir/cluster.json: the pair of this node, set by pairing.

Decides the format and validates it. A node without the file is single. The file contains the node's secret key, so only root
can read it. It is replaced atomically (write, fsync, rename), so that a crash leaves the old pair or the new one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ctl.config.validation import MAX_PRIORITY, canonical_address, check_name
from ctl.errors import Code, InvalidInput, XlbError, storage_code
from ctl.state.durable_files import Files, utc_stamp
from ctl.state.sealed import is_intact, sealed
from sync.transport import Keys

FILE = "cluster.json"
COPY = "cluster.json.copy"
FORMAT_VERSION = 1
MAX_BYTES = 64 * 1024

# Unassigned by IANA (service names and port numbers); consecutive, for simple firewall rules.
CONTROL_PORT = 10917  # heartbeats, configuration, hand-over
BULK_PORT = 10918  # flows
PAIRING_PORT = 10919  # open only while a token is outstanding
CONFIG_PORT = 10920  # configurations and requests

log = logging.getLogger(__name__)
_PAIR_ID = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")  # Z85 (ZeroMQ RFC 32)


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the pair, in the data that both nodes share."""

    name: str
    cluster_address: str  # canonical; the only address on which the node listens for its peer
    data_address: str  # canonical, for unicast VRRP; empty: the node had none when it was paired
    priority: int  # agreed during pairing; a priority in the node file overrides it
    public_key: str  # CURVE, Z85


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """A pair, seen from one of its nodes."""

    pair_id: str  # 32 hexadecimal digits, the same on both nodes
    own: Member
    peer: Member
    secret_key: str  # CURVE, Z85
    creator: bool  # this node provided the pair's first configuration and was active when the pair was formed
    created_s: int  # seconds since 1970

    def __post_init__(self) -> None:
        """Raise InvalidInput naming the invalid field."""
        if not _PAIR_ID.fullmatch(self.pair_id):
            raise InvalidInput("expected 32 hexadecimal digits", "pair_id")
        if not _KEY.fullmatch(self.secret_key):
            raise InvalidInput("expected 40 characters of Z85", "secret_key")
        for place, member in (("own", self.own), ("peer", self.peer)):
            check_member(member, place)
        if reason := why_no_pair(self.own, self.peer):
            raise InvalidInput(reason, "peer")

    @property
    def keys(self) -> Keys:
        """This node's CURVE keys."""
        return Keys(self.own.public_key, self.secret_key)


def check_member(member: Member, place: str) -> None:
    """Raise InvalidInput whose key begins with `place`."""
    check_name(member.name, f"{place}.name")
    addresses = [("cluster_address", member.cluster_address)]
    addresses += [("data_address", member.data_address)] if member.data_address else []
    for key, address in addresses:
        if canonical_address(address, f"{place}.{key}") != address:
            raise InvalidInput(f'expected an address in canonical form, got "{address}"', f"{place}.{key}")
    if not 1 <= member.priority < MAX_PRIORITY:
        raise InvalidInput(f"expected 1 to {MAX_PRIORITY - 1}, got {member.priority}", f"{place}.priority")
    if not _KEY.fullmatch(member.public_key):
        raise InvalidInput("expected 40 characters of Z85", f"{place}.public_key")


def why_no_pair(one: Member, two: Member) -> str:
    """Why two nodes cannot be a pair, with the remedy; empty if they can."""
    if one.name == two.name:
        return f'both nodes are named "{one.name}"; set node.name in the node file of one of them and restart its xlbd'
    if one.cluster_address == two.cluster_address:
        return f"both nodes have the cluster address {one.cluster_address}; give --local each node's own address"
    if (":" in one.cluster_address) != (":" in two.cluster_address):
        return f"{one.cluster_address} and {two.cluster_address} are of different families; use IPv4 or IPv6 on both"
    if one.data_address and one.data_address == two.data_address:
        return f"both nodes have the address {one.data_address} on the data network; give each its own"
    if one.priority == two.priority:
        return f"both nodes have priority {one.priority}; set cluster.priority in the node file of one of them"
    if one.public_key == two.public_key:
        return "both nodes have the same key: one was copied from the other; run xlbctl cluster destroy on both"
    return ""


class ClusterFile:
    """state_dir/cluster.json. Methods block (fsync): call them in a thread."""

    def __init__(self, state_dir: Path, files: Files | None = None) -> None:
        self.path, self._copy = state_dir / FILE, state_dir / COPY
        self._files = files or Files()

    def load(self, repair: bool = False) -> ClusterSettings | None:
        """The pair of this node; None: the node is single.

        repair: a damaged file is saved under another name, and restored from its copy.
        Raises XlbError if the file is unusable: a node must not become a single node because its file is damaged.
        """
        text = self._read(self.path)
        if text is None:
            return None
        try:
            return decode(text)
        except InvalidInput as error:
            return self._from_copy(error, repair)
        except XlbError as error:
            raise XlbError(f"{self.path}: {error}; nothing was changed") from None

    def _from_copy(self, damage: InvalidInput, repair: bool) -> ClusterSettings:
        """What the damaged file was, from its copy."""
        copy = self._read(self._copy)
        with contextlib.suppress(XlbError):
            if copy is not None:
                settings = decode(copy)
                self._restore(copy, damage, repair)
                return settings
        remedy = (
            f"restore it from a backup, or move it and {self._copy.name} away, run xlbctl cluster destroy --yes on both nodes "
            "and create the pair again"
        )
        raise XlbError(f"{self.path} is damaged: {damage}; {remedy}", Code.DAMAGED_FILE) from None

    def _restore(self, copy: bytes, damage: InvalidInput, repair: bool) -> None:
        kept = self.path.with_name(f"{FILE}.corrupt-{utc_stamp()}")
        try:
            if repair:
                self._files.link(self.path, kept)
                self._files.replace(self.path, copy)
                log.warning("%s is damaged (%s), saved as %s, restored from %s", self.path, damage, kept, self._copy)
                return
        except OSError as error:
            log.warning("cannot restore %s: %s", self.path, error.strerror or error)
        log.warning("%s is damaged (%s): this node runs with %s; restore the file from it", self.path, damage, self._copy)

    def _read(self, path: Path) -> bytes | None:
        try:
            return self._files.read(path, MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise XlbError(f"cannot read {path}: {error.strerror}; run xlbd as root", storage_code(error)) from None

    def save(self, settings: ClusterSettings) -> None:
        """Returns once the file would survive a power cut. Raises XlbError naming the file and the reason."""
        try:
            self._files.replace(self._copy, encode(settings))
            self._files.replace(self.path, encode(settings))
        except OSError as error:
            raise XlbError(
                f"cannot store {self.path}: {error.strerror or error}; check the disk and try again", storage_code(error)
            ) from error

    def remove(self) -> None:
        """Make the node single from its next start; no error if it already is. Raises XlbError."""
        try:
            self._files.remove(self.path)
            self._files.remove(self._copy)
            with contextlib.suppress(FileNotFoundError):
                self._files.sync_directory(self.path.parent)
        except OSError as error:
            raise XlbError(
                f"cannot remove {self.path}: {error.strerror or error}; check the disk and try again", storage_code(error)
            ) from error


def encode(settings: ClusterSettings) -> bytes:
    """The file's content; `decode` of it is `settings`."""
    document = sealed({"xlb": "cluster", "version": FORMAT_VERSION, **asdict(settings)})
    return json.dumps(document, indent=1).encode() + b"\n"


def decode(text: bytes) -> ClusterSettings:
    """Raises InvalidInput for what is damaged, XlbError for a newer format."""
    if len(text) > MAX_BYTES:
        raise InvalidInput(f"it is longer than {MAX_BYTES} bytes")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput("it is not JSON") from None
    if not isinstance(document, dict) or document.get("xlb") != "cluster":
        raise InvalidInput("it is not a cluster file")
    if not is_intact(document):
        raise InvalidInput("its digest does not match its content")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise InvalidInput("expected a number", "version")
    if version > FORMAT_VERSION:
        raise XlbError(
            f"written in format {version} by a newer xlb; this version reads up to {FORMAT_VERSION}: upgrade xlb",
            Code.NEWER_FORMAT,
        )
    values = _take(document, ClusterSettings, "", {"own": dict, "peer": dict})
    members = {name: Member(**_take(values[name], Member, f"{name}.", {})) for name in ("own", "peer")}
    return ClusterSettings(**values | members)


_TYPES: Mapping[str, type] = {"priority": int, "creator": bool, "created_s": int}


def _take(values: Mapping[str, Any], kind: type, place: str, types: Mapping[str, type]) -> dict[str, Any]:
    """The fields of `kind`, type-checked; ignores fields of other minor versions."""
    found = {}
    for field in fields(kind):
        expected, value = types.get(field.name, _TYPES.get(field.name, str)), values.get(field.name)
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise InvalidInput(f"expected {expected.__name__}, got {type(value).__name__}", f"{place}{field.name}")
        found[field.name] = value
    return found

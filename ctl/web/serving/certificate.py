"""The certificate of xlb-web: the operator's, or a self-signed one that is made when there is none and before it expires.

Decides when a self-signed one is made again. Certificates are read and made in a child process (`certificate_tool`), because
the library for it takes 15 MB.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctl.errors import Code, InvalidInput, XlbError

FILE = "self-signed.pem"
VALID_DAYS = 397  # the most that browsers accept of a certificate
RENEW_DAYS = 30
TOOL_S = 60.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """made: it was made by this call. names: those for which it is valid, in lower case."""

    certificate: Path
    key: Path
    names: frozenset[str]
    fingerprint: str
    made: bool

    def context(self) -> ssl.SSLContext:
        """A new TLS context with it. Raises XlbError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have connections from now on use it. Raises XlbError."""
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise XlbError(
                f"cannot use the certificate {self.certificate} with the key {self.key}: {error}; both must be PEM, belong"
                " together and be readable for xlb-web",
                Code.STORAGE_FAILED,
            ) from None


def is_due(names: Iterable[str], valid_from_s: float, valid_until_s: float, wanted: Iterable[str], now_s: float) -> bool:
    """Whether a self-signed certificate has to be made again: it expires, is not valid yet, or lacks a name."""
    return not set(wanted) <= set(names) or not valid_from_s <= now_s < valid_until_s - RENEW_DAYS * 86400


def fingerprint_of(pem: str) -> str:
    """SHA-256 of the first certificate in a PEM text, as browsers show it. Raises InvalidInput."""
    begin, end = pem.find(ssl.PEM_HEADER), pem.find(ssl.PEM_FOOTER)
    if not 0 <= begin < end:
        raise InvalidInput("has no certificate in PEM form", "web.tls_certificate")
    try:
        der = ssl.PEM_cert_to_DER_cert(pem[begin : end + len(ssl.PEM_FOOTER)])
    except ValueError as error:
        raise InvalidInput(f"is damaged: {error}", "web.tls_certificate") from None
    digest = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def given(certificate: Path, key: Path) -> Certificate:
    """The operator's. Blocks. Raises XlbError."""
    described = _tool("describe", str(certificate))
    return Certificate(certificate, key, frozenset(described["names"]), described["fingerprint"], False)


def self_signed(directory: Path, names: Iterable[str]) -> Certificate:
    """That of the directory, made if it is missing or due. names: those it must have. Blocks. Raises XlbError."""
    path = directory / FILE
    described = _tool("ensure", str(path), *sorted(set(names)))
    return Certificate(path, path, frozenset(described["names"]), described["fingerprint"], described["made"])


def _tool(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "ctl.web.serving.certificate_tool", *arguments]
    search = os.pathsep.join([str(Path(__file__).resolve().parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": search}  # the package's modules are not in Python's own path
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_S, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise XlbError(f"the certificate could not be read or made: {error}", Code.STORAGE_FAILED) from None
    if done.returncode:
        what = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise XlbError(f"the certificate could not be read or made: {what[0]}", Code.STORAGE_FAILED)
    described: dict[str, Any] = json.loads(done.stdout)
    return described

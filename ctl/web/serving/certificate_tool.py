"""Reads and makes certificates: `certificate_tool describe FILE`, `certificate_tool ensure FILE NAME…`; prints JSON.

A process of its own, see `ctl.web.serving.certificate`.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ctl.errors import XlbError
from ctl.state.durable_files import Files
from ctl.web.serving.certificate import VALID_DAYS, fingerprint_of, is_due


def main(arguments: Sequence[str]) -> None:
    """Print what the certificate is; exit 1 with a message if that fails."""
    what, path, *names = arguments
    try:
        described = describe(Path(path)) if what == "describe" else ensure(Path(path), names)
    except (OSError, ValueError, XlbError) as error:
        sys.exit(f"{path}: {error}")
    print(json.dumps(described))


def describe(path: Path) -> dict[str, object]:
    """Names, fingerprint and validity of the first certificate in a file. Raises OSError, ValueError, XlbError."""
    text = path.read_text(errors="replace")
    certificate = x509.load_pem_x509_certificate(text.encode())
    return {"names": names_of(certificate), "fingerprint": fingerprint_of(text), "made": False, **_validity(certificate)}


def ensure(path: Path, names: Sequence[str]) -> dict[str, object]:
    """As `describe`, of a self-signed certificate that is made if there is none that can be used."""
    try:
        found = describe(path)
        serialization.load_pem_private_key(path.read_bytes(), None)
    except (FileNotFoundError, ValueError, XlbError):
        found = None
    if found is not None and not is_due(found["names"], found["from_s"], found["until_s"], names, time()):  # type: ignore[arg-type]
        return found
    Files().replace(path, make(names, datetime.now(UTC)))
    return describe(path) | {"made": True}


def make(names: Sequence[str], now: datetime) -> bytes:
    """A key on P-256 and its certificate, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    hosts = [each for each in names if not _is_address(each)]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (hosts or list(names))[0][:64])])
    alternatives: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(each)) if _is_address(each) else x509.DNSName(each) for each in names
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + timedelta(days=VALID_DAYS - 1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def names_of(certificate: x509.Certificate) -> list[str]:
    """The DNS names and addresses for which it is valid, in lower case."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(each) for each in found.get_values_for_type(x509.IPAddress)]
    return [*(each.lower() for each in found.get_values_for_type(x509.DNSName)), *addresses]


def _validity(certificate: x509.Certificate) -> dict[str, object]:
    """Debian's version has only the names without time zone."""
    if hasattr(certificate, "not_valid_after_utc"):
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    else:
        begin, end = (each.replace(tzinfo=UTC) for each in (certificate.not_valid_before, certificate.not_valid_after))
    return {"from_s": begin.timestamp(), "until_s": end.timestamp()}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])

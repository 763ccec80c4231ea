"""One DNS query and its answer: bytes in, the reason of a failure out. No I/O; dnspython encodes and parses (RFC 1035).

Loaded by the first DNS check, because its modules take memory that other nodes need not spend.
"""

from __future__ import annotations

import ipaddress

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from ctl.config.model import HealthCheck, QueryType
from ctl.health.probes.http_answer import NotAnswered

MAX_BYTES = 1232
"""Without EDNS a server answers with 512 bytes at most (RFC 1035 section 4.2.1); parsing more would hold up the loop."""


class DnsQuery:
    """The query of a check."""

    def __init__(self, check: HealthCheck) -> None:
        self._check = check
        self._query = dns.message.make_query(check.query, check.query_type.value, use_edns=False)
        self.request: bytes = self._query.to_wire()

    def is_answered(self, data: bytes) -> bool:
        """Whether these bytes are the expected answer; False: they answer another query. Raises NotAnswered."""
        try:
            answer = dns.message.from_wire(data)
        except (dns.exception.DNSException, ValueError) as error:
            raise NotAnswered(f"answer is not valid DNS: {str(error) or type(error).__name__}") from None
        if not self._query.is_response(answer):
            return False
        check, asked = self._check, f"{self._check.query} {self._check.query_type}"
        rcode = dns.rcode.to_text(answer.rcode())
        if rcode != check.rcode:
            raise NotAnswered(f"{asked} answered {rcode}, expected {check.rcode}")
        if check.answer:
            kind = dns.rdatatype.from_text(check.query_type.value)
            found = [_plain(data.to_text()) for records in answer.answer if records.rdtype == kind for data in records]
            if _expected(check) not in found:
                shown = ", ".join(found[:3]) or "no such record"
                raise NotAnswered(f"{asked} answered {shown}, expected {check.answer}")
        return True


def _expected(check: HealthCheck) -> str:
    """The expected record in dnspython's form."""
    if check.query_type in (QueryType.A, QueryType.AAAA):
        return str(ipaddress.ip_address(check.answer))
    return _plain(check.answer)


def _plain(text: str) -> str:
    """A record's text without the quotes, the final dot and the case that do not matter."""
    return text.strip('"').rstrip(".").lower()

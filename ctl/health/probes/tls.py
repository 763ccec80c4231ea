"""TLS over a probe's connection.

Runs in threads of its own, because one handshake costs milliseconds of arithmetic, and a hostile certificate more; the
threads only calculate and never wait for a backend, so that a silent one occupies none. Loads OpenSSL, several megabytes:
import it where a check needs it. Must not know what is sent.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ctl.health.probes.stream import READ_BYTES, Stream, TlsFailed
from ctl.runtime.realtime_scheduling import worker_threads

MAX_HANDSHAKE_BYTES = 262144
THREADS = 2

_T = TypeVar("_T")


class TlsStream:
    """TLS over a stream. name: of the server, for SNI and its certificate; an address is not sent (RFC 6066 section 3)."""

    def __init__(self, stream: Stream, context: ssl.SSLContext, name: str) -> None:
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._bytes = 0

    async def handshake(self) -> None:
        """Raises TlsFailed, OSError."""
        try:
            await self._step(self._tls.do_handshake, MAX_HANDSHAKE_BYTES)
        except ssl.SSLCertVerificationError as error:
            raise TlsFailed(f"certificate is not valid: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise TlsFailed(f"TLS handshake failed: {_reason(error)}") from None

    async def send(self, data: bytes) -> None:
        await self._step(lambda: self._tls.write(data))

    async def receive(self) -> bytes:
        """At most READ_BYTES; empty: the peer has closed."""
        try:
            return await self._step(lambda: self._tls.read(READ_BYTES))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        except ssl.SSLError as error:
            raise TlsFailed(f"TLS failed: {_reason(error)}") from None

    async def _step(self, step: Callable[[], _T], most: int | None = None) -> _T:
        while True:
            try:
                result = await _in_thread(step)
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._stream.receive()
                self._bytes += len(data)
                if most is not None and self._bytes > most:
                    raise TlsFailed(f"TLS handshake failed: more than {most} bytes") from None
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            await self._stream.send(data)


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLEOFError):
        return "the server closed the connection"
    return (error.reason or str(error)).replace("_", " ").lower()


async def tls_context(verify: bool, ca_file: str) -> ssl.SSLContext:
    """A client's context. Raises TlsFailed if `ca_file` cannot be read."""
    return await _in_thread(lambda: _cached_context(verify, ca_file))


def _cached_context(verify: bool, ca_file: str) -> ssl.SSLContext:
    """Reading all authorities of a system takes tens of milliseconds; once per version of the file suffices."""
    try:
        status = Path(ca_file).stat() if ca_file else None
        return _context(verify, ca_file, status and (status.st_mtime_ns, status.st_ino, status.st_size))
    except ssl.SSLError as error:
        raise TlsFailed(f"{ca_file} has no certificates: {_reason(error)}") from None
    except OSError as error:
        raise TlsFailed(f"cannot read {ca_file}: {error.strerror}") from None


_MOST_CONTEXTS = 64
_contexts: dict[tuple[Any, ...], ssl.SSLContext] = {}


def _context(*key: Any) -> ssl.SSLContext:
    verify, ca_file, _ = key
    context = _contexts.get(key)
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if not verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers("DEFAULT:@SECLEVEL=0")  # who the server is does not matter, so neither does a weak key
        elif ca_file:
            context.load_verify_locations(ca_file)
        else:
            context.load_default_certs()
        if len(_contexts) >= _MOST_CONTEXTS:
            _contexts.clear()
        _contexts[key] = context
    return context


@cache
def _threads() -> ThreadPoolExecutor:
    return worker_threads(THREADS, "tls-checks")


async def _in_thread(step: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(_threads(), step)

"""Which passwords are accepted, their hashes (argon2id, RFC 9106), and whether a password is that of a hash.

The cost is OWASP's least (19 MiB, two passes, one lane): it is paid at each login, in a process that has little memory.
"""

from __future__ import annotations

import unicodedata

import argon2

from ctl.errors import InvalidInput

MIN_CHARACTERS = 10
MAX_BYTES = 1024
MEMORY_KIB, PASSES, LANES = 19456, 2, 1

_HASHER = argon2.PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, hash_len=32, salt_len=16)


def normalized(password: str) -> str:
    """The same for each way in which the same characters can be typed (Unicode NFC)."""
    return unicodedata.normalize("NFC", password)


def check(password: str, key: str = "password") -> None:
    """A new password. Raises InvalidInput, without the password."""
    if len(normalized(password)) < MIN_CHARACTERS:
        raise InvalidInput(f"is too short: expected at least {MIN_CHARACTERS} characters", key)
    if len(normalized(password).encode(errors="surrogatepass")) > MAX_BYTES:
        raise InvalidInput(f"is too long: expected at most {MAX_BYTES} bytes", key)
    if any("\ud800" <= each <= "\udfff" for each in password):
        raise InvalidInput("is no Unicode text", key)


def hash_password(password: str) -> str:
    """The hash in the PHC string format, with a new salt. Takes 20 ms and 19 MiB: call it in a thread."""
    return _HASHER.hash(normalized(password))


def matches(password_hash: str, password: str) -> bool:
    """Whether this is the password of a hash; an empty hash, that of a user who does not exist, takes as long."""
    try:
        if not password_hash:
            _HASHER.hash(normalized(password))
            return False
        return _HASHER.verify(password_hash, normalized(password))
    except (argon2.exceptions.Argon2Error, argon2.exceptions.InvalidHash, UnicodeEncodeError):
        return False


def is_outdated(password_hash: str) -> bool:
    """Whether a hash was made with other costs, and should be made again at the next login."""
    try:
        return _HASHER.check_needs_rehash(password_hash)
    except argon2.exceptions.InvalidHash:
        return False

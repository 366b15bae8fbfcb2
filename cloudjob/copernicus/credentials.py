"""Who signs in to the Copernicus Data Space: what the environment says, one-time codes, what was refused of late."""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

from cloudjob.errors import ConfigError, CorruptFileError
from cloudjob.files import expanded, read_json, write_json

STEP = 30.0  # seconds that a one-time code is valid
_REMEMBERED = 600.0  # seconds in which no process sends again what was refused
_MISSING = (
    "no credentials of the Copernicus Data Space: set CDSE_USERNAME and CDSE_PASSWORD (and, with two-factor sign-in, "
    "CDSE_TOTP_SECRET, or CDSE_TOTP for a single code), or CDSE_TOKEN_FILE, a saved token answer of mode 600. "
    "An account is free: https://dataspace.copernicus.eu"
)


@dataclass(frozen=True)
class Credentials:
    """A name and a password, and what makes the codes of the second factor; or a token file (or both)."""

    username: str = ""
    password: str = field(default="", repr=False)
    single: str = field(default="", repr=False)  # one code
    secret: str = field(default="", repr=False)  # base32, that of an authenticator application
    file: Path | None = None

    @classmethod
    def of_environment(cls) -> "Credentials":
        """From CDSE_USERNAME and CDSE_PASSWORD (and CDSE_TOTP_SECRET or CDSE_TOTP), or CDSE_TOKEN_FILE; ConfigError
        without either."""
        names = ("CDSE_USERNAME", "CDSE_TOTP", "CDSE_TOTP_SECRET", "CDSE_TOKEN_FILE")
        username, single, secret, file = (os.environ.get(name, "").strip() for name in names)
        password = os.environ.get("CDSE_PASSWORD", "")
        if not file and not (username and password):
            raise ConfigError(_MISSING)
        if secret:
            _key(secret)
        try:
            path = Path(expanded(file)).absolute() if file else None
        except ValueError as error:
            raise ConfigError(f"CDSE_TOKEN_FILE: {error}") from None
        return cls(username if password else "", password, single, secret, path)

    @property
    def said(self) -> str:
        """Which variables they came from."""
        if not self.username:
            return f"CDSE_TOKEN_FILE, {self.file}"
        second = "CDSE_TOTP_SECRET" if self.secret else "CDSE_TOTP" if self.single else ""
        return ", ".join(filter(None, ("CDSE_USERNAME", "CDSE_PASSWORD", second)))

    def code(self) -> str:
        """The code of the second factor for now, "" without one."""
        return one_time_code(self.secret, time.time()) if self.secret else self.single

    def place(self, folder: Path) -> Path:
        """The folder of this account among those of others."""
        return folder / _digest(self.username or str(self.file))[:16]


class Ledger:
    """What all processes of an account remember of its sign-ins: the last code sent, and what was refused.

    Whoever reads or writes it holds the lease on the account's token.
    """

    def __init__(self, place: Path, credentials: Credentials):
        self._code, self._refused, self._credentials = place / "code.json", place / "refused.json", credentials

    def is_sent(self, code: str) -> bool:
        """Whether this code was the last that was sent: a service takes each once."""
        return _read(self._code).get("sent") == _digest(code)

    def sends(self, code: str) -> None:
        write_json(self._code, {"sent": _digest(code)})

    def refuse(self, why: str) -> None:
        """Notes that the credentials were refused; of the password it keeps what nobody can guess it from."""
        salt = secrets.token_hex(16)
        write_json(self._refused, {"salt": salt, "digest": self._slow(salt), "at": time.time(), "why": why})

    def refused(self) -> str:
        """Why these same credentials were refused in the last minutes; "" where they were not: tried by each task of an
        array, a wrong password locks the account."""
        kept = _read(self._refused)
        if not kept or abs(time.time() - kept["at"]) > _REMEMBERED or kept["digest"] != self._slow(kept["salt"]):
            return ""
        clock = time.strftime("%H:%M", time.localtime(kept["at"]))
        return f"{kept['why']} (at {clock}; not sent again before {_REMEMBERED / 60:.0f} minutes are over)"

    def _slow(self, salt: str) -> str:
        given = self._credentials
        text = "\0".join((given.username, given.password, given.secret or given.single))
        return hashlib.pbkdf2_hmac("sha256", text.encode(), bytes.fromhex(salt), 100_000).hex()


def one_time_code(secret: str, at: float) -> str:
    """The 6 digits of a time-based one-time password (RFC 6238, with HMAC-SHA-1 and 30 s) at `at`, seconds since 1970.

    ConfigError where the secret is not base32.
    """
    mac = hmac.digest(_key(secret), struct.pack(">Q", int(at // STEP)), "sha1")
    start = mac[-1] & 15
    return f"{(int.from_bytes(mac[start : start + 4], 'big') & 0x7FFFFFFF) % 10**6:06}"


def _key(secret: str) -> bytes:
    text = "".join(secret.split()).replace("-", "").upper().rstrip("=")
    try:
        return base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        raise ConfigError(
            "CDSE_TOTP_SECRET is not base32 (letters A to Z, digits 2 to 7): take the key that the account page shows "
            "beside the QR code, not a six-digit code"
        ) from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> dict:
    try:
        return read_json(path) if path.exists() else {}
    except CorruptFileError:
        return {}

"""What a server was asked: one line of JSON per request, and every credential that came where it should not.

No line holds a credential itself.
"""

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_NAMES = {"access_token", "refresh_token", "password", "username", "totp"}  # of parameters that give a credential
_SHORTEST = 6  # characters
_HIDDEN = "***"


class Secrets:
    """The passwords and tokens that a server has seen or given, but for short ones: those stand in any text."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def add(self, texts: Iterable[str]) -> None:
        """Takes note of more of them."""
        self._known = self._known | {
            text for text in texts if len(text) >= _SHORTEST
        }  # a new set: others may be going through the old

    def inside(self, text: str) -> bool:
        """Whether a text has one of them in it."""
        return any(secret in text for secret in self._known)

    def hide(self, text: str) -> str:
        """The text without them."""
        for secret in self._known:
            text = text.replace(secret, _HIDDEN)
        return text

    def misplaced(self, service: str, target: str, headers: Mapping[str, str], body: str) -> list[str]:
        """Where a request carries a credential that is not due there.

        A token is due in the header of a request to the download service, a password or a refresh token in the body of
        one to the token service, and nothing anywhere else. `service` is "token", "search", "list", "file" or "else".
        """
        authorization = headers.get("Authorization", "")
        address = unquote(target)
        found = {
            "address": self.inside(address) or not _NAMES.isdisjoint(parse_qs(urlsplit(target).query)),
            "authorization": bool(authorization) and service not in ("file", "list"),
            "body": service != "token" and (self.inside(unquote(body)) or not _NAMES.isdisjoint(parse_qs(body))),
            "headers": any(self.inside(value) for key, value in headers.items() if key.lower() != "authorization"),
        }
        return [place for place, is_there in found.items() if is_there]


class Journal:
    """Appends lines to a file, each whole; without a file it keeps nothing."""

    def __init__(self, path: Path | None):
        self._file = path.open("a", encoding="utf-8") if path else None
        self._lock = threading.Lock()

    def write(self, line: Mapping[str, Any]) -> None:
        """One more line; what is None or empty is left out."""
        text = json.dumps({key: value for key, value in line.items() if value not in (None, "", [], {})})
        with self._lock:
            if self._file:
                self._file.write(f"{text}\n")
                self._file.flush()

    def close(self) -> None:
        """Ends the file; what is written later is lost."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None

"""What a queue of files has done so far, in bytes, for people."""

import threading
import time
from collections.abc import Callable

from cloudjob.copernicus.checks import Wanted


class Tally:
    """Counts of files and bytes: `arrived` came over the network; `verified` agree with a digest or, of files whose
    digest nobody knows, `by_size`. Files of `kept` lay there whole. For any number of threads."""

    def __init__(self, products: int, said: Callable[[str], None]):
        self.products, self._said = products, said
        self.products_done = self.files = self.files_done = self.failures = 0
        self.arrived = self.verified = self.by_size = self.kept = self.linked = 0
        self.waits: dict[str, str] = {}  # file -> who else is at it
        self._wanted = self._settled = 0  # bytes
        self._unverified = 0  # files
        self._lock, self._begin, self._planned = threading.Lock(), time.monotonic(), 0

    def plan(self, files: list[Wanted]) -> None:
        """These files are known to be wanted."""
        with self._lock:
            self.files += len(files)
            self._wanted += sum(file.size or 0 for file in files)

    def lack(self, file: Wanted) -> None:
        """A file that was planned is gone, and the product does without."""
        with self._lock:
            self.files -= 1
            self._wanted -= file.size or 0

    def begin(self) -> None:
        """One more product is looked at."""
        with self._lock:
            self._planned += 1

    def took(self, count: int) -> None:
        """So many bytes have arrived."""
        with self._lock:
            self.arrived += count

    def settle(self, file: Wanted, size: int, *, kept: bool = False, linked: bool = False) -> None:
        """A file lies there whole."""
        with self._lock:
            self.files_done += 1
            self._settled += size
            self.kept += size * kept
            self.linked += size * linked
            if file.digest:
                self.verified += size
                return
            self.by_size += size
            self._unverified += 1
            first = self._unverified == 1
        if first:
            how = "verified by size" if file.size is not None else "not verified"
            self._said(f"{file.name}: {how}, since its checksum is empty or unknown; others of this kind are counted")

    @property
    def share(self) -> float:
        """Of the products that are done; a failed one is not."""
        return self.products_done / self.products if self.products else 1.0

    def line(self) -> str:
        """How far it is: products, files, bytes, rate, failures, waits, expected end."""
        seconds = max(time.monotonic() - self._begin, 1e-3)
        share = self._planned / self.products if self.products else 1.0
        total = self._wanted / share if share else 0.0  # as if the others were like these
        done = min(self._settled + self._open(), total)
        parts = [f"{self.products_done} of {self.products} products", f"{self.files_done} files"]
        parts.append(f"{size_of(done)} of {'' if share == 1 else '~'}{size_of(total)}")
        parts.append(f"{size_of(self.arrived / seconds)}/s")
        if self.failures:
            parts.append(f"{self.failures} failed")
        if waits := tuple(self.waits.values()):
            parts.append(f"waits for {len(waits)} files: {waits[0]}")
        if self.arrived and total > done:
            end = time.time() + (total - done) / (self.arrived / seconds)
            parts.append(f"ends about {time.strftime('%a %H:%M', time.localtime(end))}")
        return ", ".join(parts)

    def _open(self) -> int:
        """Bytes that have arrived of files that are not whole."""
        return max(self.arrived + self.kept + self.linked - self._settled, 0)

    def note(self) -> str:
        """What was done, at the end; "" where nothing was."""
        if not self.files_done:
            return ""
        seconds = max(time.monotonic() - self._begin, 1e-3)
        parts = [f"{size_of(self.arrived)} fetched ({size_of(self.arrived / seconds)}/s)"]
        parts.append(f"{size_of(self.verified)} verified")
        if self.by_size:
            parts.append(f"{size_of(self.by_size)} by size alone ({self._unverified} files)")
        if self.linked:
            parts.append(f"{size_of(self.linked)} linked")
        return ", ".join(parts)


def size_of(count: float) -> str:
    """A number of bytes in words, decimal units."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"

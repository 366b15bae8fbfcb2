"""What is said of bytes: while they come, and at the end."""

import time

from cloudjob.copernicus.checks import Wanted
from cloudjob.copernicus.tally import Tally, size_of

MD5 = ("MD5", "ab" * 16)


def test_progress_is_in_bytes_and_guesses_what_is_not_listed_yet(monkeypatch):
    now = time.monotonic()
    tally = Tally(4, print)
    files = [Wanted("a.jp2", 3_000_000, MD5), Wanted("b.jp2", 1_000_000, MD5)]
    tally.begin()
    tally.plan(files)
    tally.took(2_000_000)
    monkeypatch.setattr(time, "monotonic", lambda: now + 2)
    assert tally.line().startswith("0 of 4 products, 0 files, 2.0 MB of ~16.0 MB, 1.0 MB/s, ends about ")
    tally.took(2_000_000)
    for file in files:
        tally.settle(file, file.size)
    tally.products_done, tally.failures = 1, 2
    tally.waits["c"] = "file c is being made by process 7"
    assert "1 of 4 products, 2 files, 4.0 MB of ~16.0 MB, 2.0 MB/s, 2 failed" in tally.line()
    assert "waits for 1 files: file c is being made by process 7" in tally.line()
    assert tally.share == 0.25
    assert tally.note() == "4.0 MB fetched (2.0 MB/s), 4.0 MB verified"


def test_what_was_kept_or_linked_or_has_no_digest_is_told_apart():
    said = []
    tally = Tally(1, said.append)
    tally.settle(Wanted("a", 5_000_000, MD5), 5_000_000, kept=True)
    tally.settle(Wanted("b", 1_000_000), 1_000_000, linked=True)
    tally.settle(Wanted("c"), 1_000_000)
    assert said == ["b: verified by size, since its checksum is empty or unknown; others of this kind are counted"]
    fetched, *rest = tally.note().split(", ")
    assert fetched.startswith("0 kB fetched")
    assert rest == ["5.0 MB verified", "2.0 MB by size alone (2 files)", "1.0 MB linked"]


def test_sizes_are_decimal():
    assert [size_of(count) for count in (0, 999_499, 1e6, 5.4e8, 1.2e10, 1.2e13)] == [
        "0 kB",
        "999 kB",
        "1.0 MB",
        "540.0 MB",
        "12.0 GB",
        "12.0 TB",
    ]

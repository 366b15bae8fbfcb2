"""What is known of a file, from STAC and from the manifest, and what stands where nothing is known."""

import hashlib
from types import SimpleNamespace

import pytest

from cloudjob.copernicus.checks import Wanted, known, wanted, wrong

SHA3, MD5 = hashlib.sha3_256(b"a").hexdigest(), hashlib.md5(b"a").hexdigest()


def entry(algorithm: str, digest: str, optional: bool = False) -> SimpleNamespace:
    return SimpleNamespace(path="a.xml", size=1, algorithm=algorithm, digest=digest, optional=optional)


@pytest.mark.parametrize(
    ("multihash", "digest"),
    [
        ("1620" + SHA3, ("SHA3-256", SHA3)),
        ("d50120" + SHA3, ("SHA3-256", SHA3)),  # as the Data Space labels that of XML files
        ("d50110" + MD5, ("MD5", MD5)),
        ("1220" + SHA3, None),  # SHA2-256
        ("1620" + "0" * 64, None),
        ("N/A", None),
        ("", None),
        (None, None),
    ],
)
def test_stac_comes_first_and_the_manifest_where_it_has_none(multihash, digest):
    checksums = {"a.xml": {"size": 2, "multihash": multihash}, "manifest.safe": {"size": 9, "multihash": multihash}}
    assert known("manifest.safe", checksums) == Wanted("manifest.safe", 9, digest)
    (file,) = wanted([entry("MD5", "ab" * 16)], checksums)
    assert file == (Wanted("a.xml", 2, digest) if digest else Wanted("a.xml", 1, ("MD5", "ab" * 16)))
    assert [each.optional for each in wanted([entry("", ""), entry("", "", True)], checksums)] == [False, True]


@pytest.mark.parametrize(("algorithm", "digest"), [("", ""), ("MD5", "0" * 32), ("MD5", "N/A"), ("CRC", "ab" * 16)])
def test_an_empty_or_unknown_checksum_leaves_the_size(algorithm, digest):
    assert wanted([entry(algorithm, digest)], {}) == [Wanted("a.xml", 1)]
    assert known("manifest.safe", {}) == Wanted("manifest.safe")


def test_what_lies_there_is_checked_by_all_that_is_known(tmp_path):
    (tmp_path / "f").write_bytes(b"a")
    assert wrong(tmp_path / "f", Wanted("f", 1, ("SHA3-256", SHA3.upper()))) is None
    assert wrong(tmp_path / "f", Wanted("f", None, ("MD5", MD5))) is None
    assert wrong(tmp_path / "f", Wanted("f", 2)) == "1 bytes instead of 2"
    assert "MD5 is" in wrong(tmp_path / "f", Wanted("f", 1, ("MD5", "ab" * 16)))
    assert "is no JPEG 2000" in wrong(tmp_path / "f", Wanted("f.jp2", 1))


def test_where_stac_knows_no_size_the_manifest_does():
    checksums = {"a.xml": {"size": None, "multihash": "1620" + SHA3}}
    assert wanted([entry("MD5", "ab" * 16)], checksums) == [Wanted("a.xml", 1, ("SHA3-256", SHA3))]
    assert known("a.xml", checksums) == Wanted("a.xml", None, ("SHA3-256", SHA3))

import pytest

from cloudjob.copernicus import credentials as module
from cloudjob.copernicus.credentials import Credentials, Ledger, one_time_code
from cloudjob.errors import ConfigError

SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # the key of RFC 6238, "12345678901234567890"
VARIABLES = ("CDSE_USERNAME", "CDSE_PASSWORD", "CDSE_TOTP", "CDSE_TOTP_SECRET", "CDSE_TOKEN_FILE")


@pytest.fixture
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


# RFC 6238, appendix B, SHA-1: the last six of its eight digits.
@pytest.mark.parametrize(
    ("at", "code"),
    [
        (59, "287082"),
        (1111111109, "081804"),
        (1111111111, "050471"),
        (1234567890, "005924"),
        (2000000000, "279037"),
        (20000000000, "353130"),
    ],
)
def test_codes_are_those_of_the_rfc(at, code):
    assert one_time_code(SECRET, at) == code
    assert one_time_code("gezd gnbv-gy3t qojq gezd gnbv gy3t qojq====", at) == code


def test_what_is_set_says_which_account_and_how(environment, tmp_path):
    with pytest.raises(ConfigError, match=r"CDSE_USERNAME and CDSE_PASSWORD .*CDSE_TOTP_SECRET.*CDSE_TOKEN_FILE"):
        Credentials.of_environment()
    environment("CDSE_USERNAME", "me")
    with pytest.raises(ConfigError, match="no credentials"):
        Credentials.of_environment()
    environment("CDSE_PASSWORD", " very-secret ")
    found = Credentials.of_environment()
    assert (found.username, found.password, found.code(), found.said) == (
        "me",
        " very-secret ",
        "",
        "CDSE_USERNAME, CDSE_PASSWORD",
    )
    assert "very-secret" not in repr(found)
    environment("CDSE_TOTP", "123456")
    assert Credentials.of_environment().code() == "123456"
    environment("CDSE_TOTP_SECRET", SECRET)
    assert Credentials.of_environment().said == "CDSE_USERNAME, CDSE_PASSWORD, CDSE_TOTP_SECRET"
    assert len({Credentials.of_environment().code(), "123456"}) == 2
    assert not {SECRET, "123456"} & set(repr(Credentials.of_environment()).split("'"))
    environment("CDSE_TOTP_SECRET", "123456")
    with pytest.raises(ConfigError, match="CDSE_TOTP_SECRET is not base32"):
        Credentials.of_environment()


def test_accounts_have_places_of_their_own(environment, tmp_path):
    places = set()
    for name in ("me", "you"):
        places.add(Credentials(name, "x").place(tmp_path))
        assert Credentials(name, "x").place(tmp_path) == Credentials(name, "y", "1").place(tmp_path)
    environment("CDSE_TOKEN_FILE", str(tmp_path / "token.json"))
    alone = Credentials.of_environment()
    assert alone.file == tmp_path / "token.json"
    assert len(places | {alone.place(tmp_path)}) == 3


def test_what_was_refused_is_remembered_for_some_minutes(tmp_path, monkeypatch):
    now = 1_700_000_000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    me = Credentials("me", "wrong", "111111")
    Ledger(tmp_path, me).refuse("HTTP 401")
    assert "HTTP 401" in Ledger(tmp_path, me).refused()
    assert "wrong" not in "".join(path.read_text() for path in tmp_path.iterdir())
    for other in (Credentials("me", "right", "111111"), Credentials("me", "wrong", "222222")):
        assert Ledger(tmp_path, other).refused() == ""
    now += 601
    assert Ledger(tmp_path, me).refused() == ""


def test_the_last_code_is_known_to_all(tmp_path):
    me = Credentials("me", "x", "111111")
    assert not Ledger(tmp_path, me).is_sent("111111")
    Ledger(tmp_path, me).sends("111111")
    assert Ledger(tmp_path, me).is_sent("111111")
    assert not Ledger(tmp_path, me).is_sent("111112")
    (tmp_path / "code.json").write_text("{")
    assert not Ledger(tmp_path, me).is_sent("111111")

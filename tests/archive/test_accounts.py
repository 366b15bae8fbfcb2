"""Who may sign in at a server with rules: the right password, each code once, so many sessions."""

import time

import pytest

from cloudjob.archive.accounts import Accounts, one_time_code
from cloudjob.archive.faults import Rules

SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # "12345678901234567890", the secret of RFC 6238, appendix B
FORM = {"username": "ann", "password": "secret"}


@pytest.mark.parametrize(
    ("moment", "code"),
    [
        (59, "287082"),
        (1111111109, "081804"),
        (1111111111, "050471"),
        (1234567890, "005924"),
        (2000000000, "279037"),
        (20000000000, "353130"),
    ],
)
def test_codes_are_those_of_the_rfc(moment, code):
    assert one_time_code(SECRET, moment) == code
    assert one_time_code(SECRET.lower(), moment) == code


def test_a_code_is_good_for_one_sign_in():
    accounts = Accounts(Rules(totp_secret=SECRET))
    code = one_time_code(SECRET, time.time())
    assert accounts.refusal(FORM) == (401, "Invalid user credentials")
    assert accounts.refusal(FORM | {"totp": code}) is None
    assert accounts.refusal(FORM | {"totp": code}) == (401, "Invalid user credentials")
    assert accounts.refusal(FORM | {"totp": one_time_code(SECRET, time.time() - 90)}) is not None


def test_the_password_and_the_life_of_the_account_count():
    assert Accounts(Rules()).refusal(FORM) is None
    assert Accounts(Rules(password="secret")).refusal(FORM) is None
    assert Accounts(Rules(password="other")).refusal(FORM) == (401, "Invalid user credentials")
    assert Accounts(Rules(expired=True)).refusal(FORM) == (400, "Account disabled")


def test_sessions_are_counted_until_they_end_and_a_refresh_begins_none():
    accounts, later = Accounts(Rules(sessions=2)), time.monotonic() + 60
    accounts.grant("ann", "", "first", later)
    accounts.grant("ann", "first", "its refresh", later)
    assert accounts.refusal(FORM) is None
    accounts.grant("ann", "", "second", later)
    assert accounts.refusal(FORM) == (400, "User session limit exceeded")
    assert accounts.refusal(FORM | {"username": "bob"}) is None
    accounts.grant("ann", "its refresh", "last refresh", time.monotonic())
    assert accounts.refusal(FORM) is None
    assert accounts.grants == 4


def test_past_the_quota_one_slow_connection_is_left():
    accounts = Accounts(Rules(quota=100))
    accounts.fetch("ann", 99)
    assert (accounts.connections("ann"), accounts.speed("ann")) == (4, None)
    accounts.fetch("ann", 1)
    assert (accounts.connections("ann"), accounts.speed("ann")) == (1, 1e6)
    assert accounts.connections("bob") == 4

"""What may be configured of a served archive's faults: how often each of them comes, how long it lasts."""

from typing import Annotated, Any

from pydantic import Field

from cloudjob.archive.faults import Rules
from cloudjob.config.fields import Count, Fraction, Section, Text

Seconds = Annotated[float, Field(ge=0)]


def _rate(description: str) -> Any:
    return Field(None, description=description)


class FaultRates(Section):
    """The share of what is asked that meets each fault, once. A rate that is not given is `every`."""

    # Any request.
    reset: Fraction | None = _rate("the connection ends without an answer")
    slow: Fraction | None = _rate("the first byte comes after slow_s")
    rate_limited: Fraction | None = _rate("429 without Retry-After")
    rate_limited_wait: Fraction | None = _rate("429 with Retry-After: retry_after")
    unavailable: Fraction | None = _rate("503")
    broken: Fraction | None = _rate("500")
    other_host: Fraction | None = _rate("a redirect to another host, over http")
    other_port: Fraction | None = _rate("a redirect to another port of the same host, over http")
    html: Fraction | None = _rate("a page of HTML with status 200")
    message: Fraction | None = _rate("a message in JSON with status 200")
    short: Fraction | None = _rate("the connection ends after half of the body")
    stalled: Fraction | None = _rate("silence after half of the body; the connection ends after stalled_s")
    dripping: Fraction | None = _rate("a byte of the body in dripping_s")
    # A file.
    missing: Fraction | None = _rate("404 for a file that is there")
    wrong_bytes: Fraction | None = _rate("one byte of the body is another")
    range_error: Fraction | None = _rate("400 to a request for a part")
    range_refused: Fraction | None = _rate("416 to a request for a part")
    range_ignored: Fraction | None = _rate("200 and the whole file to a request for a part")
    range_wrong: Fraction | None = _rate("206 with another part than was asked for")
    # A page of a catalogue.
    page_short: Fraction | None = _rate("the last row is left out")
    page_repeats: Fraction | None = _rate("the first row comes again in place of the last")
    page_last: Fraction | None = _rate("no link to the next page")
    page_elsewhere: Fraction | None = _rate("a link to the next page on another host")
    count_wrong: Fraction | None = _rate("the count is one too many")
    # A product's item in STAC.
    checksum_wrong: Fraction | None = _rate("a wrong checksum of one 10 m band")
    checksum_empty: Fraction | None = _rate("checksums are empty")
    checksum_unknown: Fraction | None = _rate("checksums are of an unknown kind")
    # A renewal of the token.
    refresh_lost: Fraction | None = _rate("the refresh token is not known any more")
    # A product: beside it, a twin of it comes into the archive for good.
    no_cloud_cover: Fraction | None = _rate("a twin without cloud cover")
    no_size: Fraction | None = _rate("a twin without sizes")
    no_checksum: Fraction | None = _rate("a twin without checksums")
    no_geometry: Fraction | None = _rate("a twin whose geometry is null")
    other_name: Fraction | None = _rate("a twin with a name of another form")
    offline: Fraction | None = _rate("a twin that is offline")
    withdrawn: Fraction | None = _rate("a twin that is listed, and gone: 404")
    # A product: one of its files.
    unauthorized: Fraction | None = _rate("401: token expired, though it has not")
    outage: Fraction | None = _rate("from then on nobody gets an answer, for outage_s")


class FaultsConfig(FaultRates):
    """A file for `cloudjob archive serve --faults`: rates of faults, and the rules of the server."""

    every: Fraction = Field(0, description="rate of each fault that is not named")
    times: Annotated[int, Field(ge=0)] = Field(
        Rules.times, description="how often a fault comes where it was drawn; 0: always"
    )
    retry_after: Annotated[int, Field(ge=0)] = Field(
        Rules.retry_after, description="seconds, as rate_limited_wait asks for"
    )
    slow_s: Seconds = Field(Rules.slow_s, description="before the first byte")
    stalled_s: Seconds = Field(Rules.stalled_s, description="of silence within a body")
    dripping_s: Seconds = Field(Rules.dripping_s, description="from byte to byte")
    outage_s: Seconds = Field(Rules.outage_s, description="without an answer for anybody")
    latency: Seconds = Field(Rules.latency, description="seconds before each answer")
    speed: Annotated[float, Field(gt=0)] | None = Field(Rules.speed, description="bytes per second and connection")
    quota: Annotated[int, Field(ge=0)] | None = Field(
        Rules.quota, description="bytes of an account, after which it has one connection of 1 MB/s"
    )
    connections: Count = Field(Rules.connections, description="of an account at a time: one more gets 429")
    sessions: Count = Field(Rules.sessions, description="of an account; each sign-in with a password is one")
    token_s: Annotated[float, Field(gt=0)] = Field(Rules.token_s, description="life of a token")
    refresh_s: Annotated[float, Field(gt=0)] = Field(Rules.refresh_s, description="life of a refresh token")
    rotating: bool = Field(Rules.rotating, description="whether a refresh token is good for one use")
    password: Text = Field(Rules.password, description="the only one that is accepted; empty: any")
    totp_secret: Text = Field(
        Rules.totp_secret, description="base32; a sign-in needs a code of it, each good for one use"
    )
    expired: bool = Field(Rules.expired, description="whether every account is")

    def rates(self) -> dict[str, float]:
        """The rate of each fault."""
        given = {name: getattr(self, name) for name in FaultRates.model_fields}
        return {name: self.every if rate is None else rate for name, rate in given.items()}

    def rules(self) -> Rules:
        """The rules of the server."""
        return Rules(**self.model_dump(exclude={"every", *FaultRates.model_fields}))

"""Whether each service of the Data Space answers from here, and accepts us."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from cloudjob.copernicus.account import Account
from cloudjob.copernicus.session import Endpoints, Session, ask, get_json, host_of, refusal
from cloudjob.copernicus.sources.https import file_url
from cloudjob.copernicus.sources.s3 import open_client
from cloudjob.errors import CloudjobError, ConfigError, InterruptedJob, ItemError

_SHORT = "bytes=0-1023"  # of a manifest: all that is fetched of a product
_S2_L2A = (
    "Collection/Name eq 'SENTINEL-2' and Attributes/OData.CSC.StringAttribute/any(att:att/Name eq 'productType' "
    "and att/OData.CSC.StringAttribute/Value eq 'S2MSI2A')"
)
_KEYS = ("CDSE_S3_ACCESS_KEY", "CDSE_S3_SECRET_KEY")


@dataclass(frozen=True)
class Finding:
    """What came of a visit at a service: what it did, or the problem and what to do about it."""

    service: str
    host: str
    words: str
    good: bool


def examine(session: Session, endpoints: Endpoints, account: Account, s3: str) -> Iterator[Finding]:
    """Visits the services one by one; of products it reads 1 kB."""
    product: list[tuple[str, str]] = []

    def search() -> str:
        wanted = quote(_S2_L2A, safe="$'()/:,")
        query = f"$filter={wanted}&$orderby=ContentDate/Start%20desc&$top=1"
        answer = get_json(session, "GET", f"{endpoints.catalogue}/Products?{query}")
        product.extend((row["Id"], row["Name"].removesuffix(".SAFE")) for row in answer["value"])
        return "answers"

    yield _visit("STAC", endpoints.stac, lambda: _lists(session, endpoints.stac))
    yield _visit("OData", endpoints.catalogue, search)
    yield (identity := _visit("identity", endpoints.token, lambda: _signs_in(account)))
    if product:
        url = file_url(endpoints, *product[0], "manifest.safe")
        yield _visit("download", url, lambda: _sends(session, url, account if identity.good else None))
    else:
        yield Finding("download", host_of(endpoints.download), "not asked: OData named no product to ask for", False)
    if all(os.environ.get(name) for name in _KEYS):
        yield _visit("S3", s3, lambda: _lists_s3(s3))
    else:
        yield Finding("S3", host_of(s3), f"not asked: {' and '.join(_KEYS)} are not set", True)


def _visit(service: str, url: str, visit: Callable[[], str]) -> Finding:
    host = host_of(url)
    try:
        return Finding(service, host, visit(), good=True)
    except InterruptedJob as error:
        return Finding(service, host, f"given up: {error}", good=False)
    except CloudjobError as error:
        return Finding(service, host, str(error).removeprefix(f"{host}: "), good=False)
    except (KeyError, TypeError, AttributeError) as error:
        return Finding(service, host, f"an answer of another shape than documented: {error!r}", good=False)


def _lists(session: Session, url: str) -> str:
    get_json(session, "GET", url)
    return "answers"


def _signs_in(account: Account) -> str:
    account.check()
    return "accepts the credentials"


def _sends(session: Session, url: str, account: Account | None) -> str:
    """Asks for the beginning of a file; without an account it is enough that the service asks for a token."""
    if account is None:
        answer = ask(session, "GET", url, headers={"Range": _SHORT}, stream=True)
        if answer.status_code != 401:
            raise ItemError(refusal(answer))
        return "answers; not asked for a file, since nobody is signed in"
    with account.slot():
        headers = {"Range": _SHORT, "Authorization": f"Bearer {account.bearer()}"}
        with ask(session, "GET", url, headers=headers, stream=True) as answer:
            if not answer.ok:
                raise ItemError(refusal(answer))
    return "sends files"


def _lists_s3(endpoint: str) -> str:
    client = open_client(endpoint)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.list_objects_v2(Bucket="eodata", Prefix="Sentinel-2/MSI/L2A/", MaxKeys=1)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        raise ConfigError(
            f"refuses the keys ({code}): they end on the day that was set when they were made; make new ones at "
            "https://eodata-s3keysmanager.dataspace.copernicus.eu"
        ) from None
    except BotoCoreError as error:
        raise ItemError(f"no answer ({error})") from None
    return "accepts the keys"

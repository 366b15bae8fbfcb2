"""Files of the S3 storage, from a real S3 server of this machine (moto)."""

import hashlib
import importlib.util
import os
import subprocess
import sys

import pytest

from cloudjob.copernicus.checks import Wanted
from cloudjob.copernicus.patience import Patience
from cloudjob.copernicus.sources import Remote
from cloudjob.copernicus.sources.s3 import S3
from cloudjob.copernicus.transfer import Broken, Limits, fetch
from cloudjob.errors import ConfigError, ItemError, LeftOutError

pytest.importorskip("botocore")

NAME = "S2A_MSIL2A_20240303T222035_N0510_R122_T05WPS_20240304T012735"
PLACE = f"Sentinel-2/MSI/L2A/2024/03/03/{NAME}.SAFE"
PRODUCT = Remote(NAME, s3=f"eodata/{PLACE}")
DATA = os.urandom(3_000_000)
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def storage():
    """In a process of its own, which finds the boto3 that moto needs: see tests/absent."""
    from botocore.session import Session

    if importlib.util.find_spec("moto") is None:
        pytest.skip("moto is missing")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes) as server:
        url = server.stdout.readline().strip()
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
        client = Session().create_client("s3", endpoint_url=url, **keys)
        client.create_bucket(Bucket="eodata")
        client.put_object(Bucket="eodata", Key=f"{PLACE}/GRANULE/f", Body=DATA)
        yield url


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv("CDSE_S3_ACCESS_KEY", "a")
    monkeypatch.setenv("CDSE_S3_SECRET_KEY", "b")


def get(source, target, path="GRANULE/f", product=PRODUCT):
    told = []
    file = Wanted(path, len(DATA), ("SHA3-256", hashlib.sha3_256(DATA).hexdigest()))
    limits = Limits(Patience(retries=1, seconds=9))
    fetch(lambda start: source.open(product, path, start), target, file, limits=limits, tell=told.append)
    assert target.read_bytes() == DATA
    return sum(told)


@pytest.mark.slow
def test_a_file_comes_whole_or_from_where_it_broke_off(storage, keys, tmp_path):
    source = S3(storage)
    assert get(source, tmp_path / "f") == len(DATA)
    (tmp_path / "g.part").write_bytes(DATA[:1_000_001])
    assert get(source, tmp_path / "g") == len(DATA) - 1_000_001
    (tmp_path / "h.part").write_bytes(DATA + b"x")
    assert get(source, tmp_path / "h") == len(DATA)


@pytest.mark.slow
def test_what_cannot_be_fetched_says_why(storage, keys, tmp_path):
    with pytest.raises(LeftOutError, match=r"g: .*NoSuchKey"):
        get(S3(storage), tmp_path / "g", "GRANULE/g")
    with pytest.raises(ItemError, match=r"does not say where it lies .* cloudjob search CONFIG --force"):
        get(S3(storage), tmp_path / "g", product=Remote(NAME))
    with pytest.raises(ItemError, match=r"Could not connect .*; 2 tries"):
        get(S3("http://127.0.0.1:9"), tmp_path / "g")


@pytest.mark.parametrize(
    ("code", "kind"), [("SignatureDoesNotMatch", ConfigError), ("AccessDenied", ConfigError), ("SlowDown", Broken)]
)
def test_refusals(code, kind):
    from botocore.exceptions import ClientError

    error = ClientError({"Error": {"Code": code, "Message": "no"}}, "GetObject")
    assert type(S3("http://host")._refusal(error, "f")) is kind


def test_keys_and_the_extra_are_asked_for(monkeypatch):
    for key in ("CDSE_S3_ACCESS_KEY", "CDSE_S3_SECRET_KEY"):
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(ConfigError, match="no keys of the S3 storage: set CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY"):
        S3("http://host").open(PRODUCT, "f", 0)
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(ConfigError, match=r"pip install 'cloudjob\[s3\]'"):
        S3("http://host").open(PRODUCT, "f", 0)


@pytest.mark.slow
def test_the_address_is_path_style_and_the_keys_are_those_of_the_environment(keys):
    from cloudjob.copernicus.sources.s3 import open_client

    client = open_client("https://eodata.example")
    url = client.generate_presigned_url("get_object", Params={"Bucket": "eodata", "Key": "a/b"})
    assert url.startswith("https://eodata.example/eodata/a/b?")
    assert "AWSAccessKeyId=a&" in url or "Credential=a%2F" in url

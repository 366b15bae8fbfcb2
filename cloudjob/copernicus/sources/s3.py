"""Files from the Data Space's S3 storage (eodata): path-style addresses, ranges, keys of their own.

botocore is the extra `s3`: boto3 would be imported by rasterio too, 0.8 s in each process. Keys come from
CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cloudjob.copernicus.sources import Remote
from cloudjob.copernicus.transfer import Broken
from cloudjob.errors import ConfigError, ItemError, LeftOutError

_BLOCK = 1 << 20
_KEYS = ("CDSE_S3_ACCESS_KEY", "CDSE_S3_SECRET_KEY")
_GONE = ("404", "NoSuchKey")
_REFUSED = ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")


class S3:
    """The storage at `endpoint`. A product lies where the catalogue says."""

    def __init__(self, endpoint: str, slot: Callable[[], AbstractContextManager] = contextlib.nullcontext):
        """`slot` lends one of the account's connections."""
        self._endpoint, self.slot = endpoint, slot
        self._lock = threading.Lock()
        self._client: Any = None  # one for all threads

    def whole(self, product: Remote) -> Path | None:
        """Its files are had one by one."""
        return None

    def local(self, product: Remote, path: str) -> Path | None:
        """Nothing of it lies on this site."""
        return None

    def open(self, product: Remote, path: str, start: int) -> "_Body":
        """See `Source`."""
        from botocore.exceptions import BotoCoreError, ClientError

        if not product.s3:
            raise ItemError(
                f"{product.name}: scenes.jsonl does not say where it lies in the S3 storage; "
                "ask the catalogue again with: cloudjob search CONFIG --force"
            )
        bucket, _, folder = product.s3.strip("/").partition("/")
        asked = {"Bucket": bucket, "Key": f"{folder}/{path}"}
        try:
            if start:
                with contextlib.suppress(ClientError):
                    return _Body(self._s3().get_object(**asked, Range=f"bytes={start}-"), start)
            return _Body(self._s3().get_object(**asked), 0)
        except ClientError as error:
            raise self._refusal(error, path) from None
        except BotoCoreError as error:
            raise Broken(f"{self._endpoint}: {error}") from None

    def _s3(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = open_client(self._endpoint)
            return self._client

    def _refusal(self, error: Any, path: str) -> Exception:
        found = error.response.get("Error", {})
        code, words = str(found.get("Code", "")), f"{self._endpoint}: {error}"
        if code in _GONE:
            return LeftOutError(f"{path.rpartition('/')[2]}: {words}")
        if code in _REFUSED:
            return ConfigError(f"{words}. Are {' and '.join(_KEYS)} right, and not expired?")
        return Broken(words)


def open_client(endpoint: str) -> Any:
    """A client of the storage at `endpoint`. ConfigError where botocore or the keys are missing."""
    try:
        from botocore.config import Config
        from botocore.session import Session
    except ImportError:
        raise ConfigError("copernicus.source s3 needs botocore: pip install 'cloudjob[s3]'") from None
    access, secret = (os.environ.get(key) for key in _KEYS)
    if not (access and secret):
        raise ConfigError(f"no keys of the S3 storage: set {' and '.join(_KEYS)}")
    return Session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name="default",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        config=Config(
            s3={"addressing_style": "path"},
            connect_timeout=10,
            read_timeout=60,
            retries={"total_max_attempts": 1},  # `transfer.fetch` tries again
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


class _Body:
    def __init__(self, answer: dict, start: int):
        range_, self._stream = answer.get("ContentRange", ""), answer["Body"]
        self.start = start if range_.startswith(f"bytes {start}-") else 0

    def read(self) -> bytes:
        """What comes next."""
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        try:
            return self._stream.read(_BLOCK)
        except (BotoCoreError, HTTPError, OSError) as error:
            raise Broken(f"broke off: {error}") from None

    def stop(self) -> None:
        """Ends a read that waits."""
        with contextlib.suppress(ValueError, RuntimeError, OSError):  # all was read
            self._stream._raw_stream.shutdown()

    def close(self) -> None:
        """Gives the connection up, or back where all was read."""
        self._stream.close()

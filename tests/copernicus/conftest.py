"""A scripted server, its addresses, and a session that does not wait long."""

import pytest
from scripted_server import Server

from cloudjob.copernicus.patience import Patience
from cloudjob.copernicus.session import Endpoints, open_session

QUICK = Patience(retries=3, seconds=9)  # waits of 10, 20, 40 ms


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def endpoints(server) -> Endpoints:
    return Endpoints(
        stac=f"{server.url}/v1",
        catalogue=f"{server.url}/odata/v1",
        download=f"{server.url}/odata/v1",
        token=f"{server.url}/token",
    )


@pytest.fixture
def session(endpoints):
    with open_session(endpoints, patience=QUICK) as session:
        yield session

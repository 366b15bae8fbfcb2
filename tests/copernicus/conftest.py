"""A scripted server, its addresses, and a session that does not wait long."""

import pytest
from scripted_server import Server

from cloudjob.copernicus.session import Endpoints, open_session


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
def session():
    with open_session(retries=3, backoff=0.01) as session:
        yield session

"""preview: fetches metadata, masks and the 60 m picture of every product: 1 to 3 % of its bytes."""

from cloudjob.config import Config
from cloudjob.workspace import Item, Summary, Workspace, digest

STAGE = "preview"


def items(config: Config, workspace: Workspace) -> list[Item]:
    rows = workspace.rows(workspace.scenes, stage="search")
    return [Item(STAGE, row["product"], {}, {"scene": digest(row["id"])}) for row in rows]


def run(config: Config, workspace: Workspace) -> Summary:
    from cloudjob.copernicus.client import Client
    from cloudjob.copernicus.session import Endpoints
    from cloudjob.sentinel2 import product as safe

    every = items(config, workspace)
    ids = {row["product"]: row["id"] for row in workspace.rows(workspace.scenes, stage="search")}
    client = Client(Endpoints(**config.copernicus.urls()), connections=config.copernicus.connections)

    def make(item: Item):
        folder = workspace.safe(item.name)
        manifest = client.file(ids[item.name], item.name, "manifest.safe", folder)
        wanted = safe.preview_files(safe.read_manifest(manifest))
        files = client.files(ids[item.name], item.name, wanted, folder)
        product = safe.Product.open(folder)
        return [manifest, *files], {"offsets": product.offsets, "sun_elevation": product.sun_elevation}

    return workspace.work(STAGE, every, make)

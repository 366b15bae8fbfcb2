"""Turns a SAFE folder of the archive into every layout in which people have such products."""

import json
import re
import shutil
import zipfile

import numpy as np
import rasterio
from affine import Affine

from cloudjob.archive.safe import write_product
from cloudjob.sentinel2.product import Product

URLS = {
    "planetary-computer": "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/05/W/PS/S2C.SAFE/IMG_DATA/R10m",
    "sentinel-2-l2a": "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/5/W/PS/2025/6/item",
    "sentinel-2-c1-l2a": "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/sentinel-2-c1-l2a/5/W/PS/2025/6/item",
}
V1 = {"red": "B04", "green": "B03", "blue": "B02", "nir": "B08", "swir16": "B11", "scl": "SCL"}
MASKS = {"cloud": "CLD_20m", "snow": "SNW_20m"}


def small_safe(folder, name):
    """A SAFE product of 60 x 60 pixels, all of them clear."""
    rng = np.random.default_rng(1)
    return write_product(
        folder,
        name=name,
        bands=rng.integers(1001, 6000, (4, 60, 60)).astype(np.uint16),
        scl=np.full((30, 30), 5, np.uint8),
        cloud_probability=rng.integers(0, 101, (30, 30)).astype(np.uint8),
        snow_probability=np.zeros((30, 30), np.uint8),
        b11=np.full((10, 10), 2000, np.uint16),
        crs="EPSG:32605",
        transform=Affine(10, 0, 499980, 0, -10, 7700040),
        offset=-1000,
        sun_elevation=30,
        sun_azimuth=180,
    )


def copied(safe, to):
    return shutil.copytree(safe, to / safe.name)


def psd_142(safe, to):
    """Names and elements of before baseline 02.07."""
    folder = copied(safe, to)
    for path in [*folder.rglob("*.jp2")]:
        old = path.name.replace("MSK_CLDPRB", "L2A_T05WPS_CLD").replace("MSK_SNWPRB", "L2A_T05WPS_SNW")
        path.rename(path.with_name(old if "L2A" in old else f"L2A_{old}"))
    user, (tile,) = folder / "MTD_MSIL2A.xml", folder.glob("GRANULE/*/MTD_TL.xml")
    text = user.read_text().replace("/T05WPS_", "/L2A_T05WPS_").replace("PRODUCT_URI", "PRODUCT_URI_2A")
    text = text.replace("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE")
    granule = tile.parent.relative_to(folder)
    masks = "".join(f"<IMAGE_FILE>{granule}/QI_DATA/L2A_T05WPS_{name}_20m</IMAGE_FILE>" for name in ("CLD", "SNW"))
    first, rest = text.split("<IMAGE_FILE>", 1)
    user.write_text(f"{first}{masks}<IMAGE_FILE>{rest}".replace("IMAGE_FILE>", "IMAGE_FILE_2A>"))
    tile.write_text(re.sub(r"<MASK_FILENAME.*?</MASK_FILENAME>", "", tile.read_text(), flags=re.DOTALL))
    return folder


def without(*parts):
    def remove(safe, to):
        folder = copied(safe, to)
        for path in [*folder.rglob("*.jp2")]:
            if any(part in path.as_posix() for part in parts):
                path.unlink()
        return folder

    return remove


def without_60m(safe, to):
    """A product of 10 and 20 m."""
    folder = without("/R60m/")(safe, to)
    user = folder / "MTD_MSIL2A.xml"
    user.write_text(re.sub(r"<IMAGE_FILE>[^<]*_60m</IMAGE_FILE>", "", user.read_text()))
    return folder


def tif(source, target, change=lambda pixels: pixels):
    target.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(source) as image:
        profile = {key: image.profile[key] for key in ("width", "height", "count", "crs", "transform", "dtype")}
        options = {"driver": "GTiff", "tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
        with rasterio.open(target, "w", **profile, **options, nodata=0) as out:
            out.write(change(image.read()))


def planetary_computer(safe, to):
    """.tif in place of .jp2, and no masks but the classification; the metadata speak of .jp2."""
    folder = copied(safe, to)
    for path in [*folder.rglob("*.jp2")]:
        if "QI_DATA" not in path.parts:
            tif(path, path.with_suffix(".tif"))
        path.unlink()
    return folder


def zipped(kind=zipfile.ZIP_DEFLATED, ending=".SAFE.zip", top=None):
    def pack(safe, to):
        archive = to / (safe.stem + ending)
        with zipfile.ZipFile(archive, "w", kind) as members:
            for path in sorted(safe.rglob("*")):
                inside = path.relative_to(safe).as_posix()
                members.write(path, inside if top == "" else f"{safe.name}/{inside}")
        return archive

    return pack


def linked(safe, to):
    """As a run folder has a product of an archive: a link without the archive's ending."""
    archive = zipped()(safe, to)
    link = to / "scenes" / safe.name
    link.parent.mkdir()
    link.symlink_to(archive)
    return link


def cogs(collection, *, applied=None, masks=False, by_asset=False, v0=False):
    """A folder of Earth Search. `applied`: what the item says of the offset, and what is true; `by_asset`: as clients
    name the files that they fetch; `v0`: keys of its first version, and of the Planetary Computer."""

    def convert(safe, to):
        product, folder = Product.open(safe), to / "item"
        offset = min(product.offsets.values())

        def without_offset(pixels):
            return np.where(pixels > 0, pixels.astype(int) + offset, 0).astype(pixels.dtype)

        assets = {}
        for key, file in (V1 | MASKS if masks else V1).items():
            asset = file if v0 else key
            target = folder / f"{asset if by_asset else file}.tif"
            tif(
                safe / _source(product, file),
                target,
                without_offset if applied and file in ("B02", "B03", "B04", "B08", "B11") else lambda pixels: pixels,
            )
            if file == "B11":
                at_20m(target)
            assets[asset] = {"href": f"{URLS[collection]}/{file}.tif"}
            if file.startswith("B") and not v0:
                assets[asset]["raster:bands"] = [{"nodata": 0, "scale": 0.0001, "offset": -0.1}]
        (folder / "tileInfo.json").write_text('{"path": "tiles/5/W/PS"}')
        (folder / "item.json").write_text(json.dumps(item(product, assets, collection, applied, v0)))
        return folder

    return convert


def _source(product, file):
    keys = {"SCL": "SCL_20m", "B11": "B11_60m", "CLD_20m": "MSK_CLDPRB_20m", "SNW_20m": "MSK_SNWPRB_20m"}
    return product.files[keys.get(file, f"{file}_10m")]


def at_20m(path):
    """Earth Search has B11 at 20 m."""
    with rasterio.open(path) as image:
        pixels, profile = image.read(), image.profile
    profile |= {"width": 3 * profile["width"], "height": 3 * profile["height"]}
    profile |= {"transform": profile["transform"] @ Affine.scale(1 / 3)}
    with rasterio.open(path, "w", **profile) as out:
        out.write(pixels.repeat(3, 1).repeat(3, 2))


def item(product, assets, collection, applied, v0):
    properties = {"datetime": "2025-06-05T22:25:41.024Z", "eo:cloud_cover": 12.5, "view:sun_elevation": 30}
    if v0:
        properties |= {"sentinel:product_id": product.name.name}
    else:
        properties |= {"s2:product_uri": f"{product.name.name}.SAFE", "s2:snow_ice_percentage": 7}
    if applied is not None:
        properties["sentinel:boa_offset_applied" if v0 else "earthsearch:boa_offset_applied"] = applied
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "S2A_5WPS_20250605_0_L2A",
        "collection": collection,
        "properties": properties,
        "assets": assets,
    }

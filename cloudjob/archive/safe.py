"""Writes Level-2A products in ESA's SAFE layout.

Layout and elements: Sentinel-2 Products Specification Document (S2-PDGS-TAS-DI-PSD) and products as delivered at
baselines 02.14 (no BOA_ADD_OFFSET, MD5, no MSK_CLASSI) and 04.00 to 05.10 (offset -1000, SHA3-256).
"""

import hashlib
import math
import os
import re
import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.warp import transform as warp_points

from cloudjob.names import ProductName
from cloudjob.pixels import BANDS, EMPTY_DN
from cloudjob.sentinel2.radiometry import from_convention, reflectance

_TCI_GAIN = 1020  # measured: ESA's true-colour pictures reach 255 at reflectance 0.25, so snow is white in them
_QUICKLOOK_PIXELS = 343
_PERCENTAGES = (  # scene-classification class 0, 1, 2 ... and ESA's element for its share
    "NODATA_PIXEL_PERCENTAGE",
    "SATURATED_DEFECTIVE_PIXEL_PERCENTAGE",
    "DARK_FEATURES_PERCENTAGE",
    "CLOUD_SHADOW_PERCENTAGE",
    "VEGETATION_PERCENTAGE",
    "NOT_VEGETATED_PERCENTAGE",
    "WATER_PERCENTAGE",
    "UNCLASSIFIED_PERCENTAGE",
    "MEDIUM_PROBA_CLOUDS_PERCENTAGE",
    "HIGH_PROBA_CLOUDS_PERCENTAGE",
    "THIN_CIRRUS_PERCENTAGE",
    "SNOW_ICE_PERCENTAGE",
)
_ORBITS = {"S2A": (date(2022, 10, 5), 38058, 23), "S2B": (date(2020, 7, 5), 17394, 65)}  # absolute, relative
_ORBITS_PER_CYCLE = 143  # in 10 days


def write_product(
    archive: Path,
    *,
    name: str,
    bands: np.ndarray,
    scl: np.ndarray,
    cloud_probability: np.ndarray,
    snow_probability: np.ndarray,
    crs: str,
    transform: Affine,
    offset: int,
    sun_elevation: float,
    sun_azimuth: float,
    b11: np.ndarray | None = None,
) -> Path:
    """Write `<archive>/<name>.SAFE` whole or not at all and return it; the same arguments give the same bytes.

    `bands` (4, H, W) uint16 in our DN convention; `scl`, `cloud_probability`, `snow_probability` (ceil(H/2),
    ceil(W/2)) uint8; `b11` (ceil(H/6), ceil(W/6)) uint16 in our DN convention, or None for a product without it;
    `transform` of the 10 m grid. `offset` 0 or -1000 becomes BOA_ADD_OFFSET (no element for 0).
    Below baseline 04.00, which the name gives, digests are MD5 and MSK_CLASSI is absent, as in ESA's products.
    """
    parsed = ProductName.parse(name)
    target = Path(archive) / f"{parsed.name}.SAFE"
    folder = target.with_name(f".{target.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    images, masks = _write_images(
        folder, parsed, bands, scl, cloud_probability, snow_probability, b11, crs, transform, offset
    )
    footprint = _footprint(crs, transform, bands.shape[1:])
    percentages = _percentages(scl)
    granule = folder / _granule(parsed)
    (granule / "MTD_TL.xml").write_text(
        _tile_metadata(parsed, crs, transform, bands.shape[1:], percentages, masks, sun_elevation, sun_azimuth)
    )
    (folder / "MTD_MSIL2A.xml").write_text(_product_metadata(parsed, images, offset, footprint, percentages))
    (folder / "manifest.safe").write_text(_manifest(folder, parsed, footprint))
    _flush(folder)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(folder, target)
    return target


def _granule(name: ProductName) -> str:
    return f"GRANULE/L2A_T{name.tile}_A{_absolute_orbit(name):06d}_{name.sensing:%Y%m%dT%H%M%S}"


def _absolute_orbit(name: ProductName) -> int:
    """The orbit with the name's relative number that is nearest in time, counted from a known one."""
    day, absolute, relative = _ORBITS.get(name.satellite, _ORBITS["S2A"])
    near = absolute + round((name.sensing.date() - day).days * _ORBITS_PER_CYCLE / 10)
    ahead = (name.relative_orbit - relative - (near - absolute)) % _ORBITS_PER_CYCLE
    return near + (ahead + 71) % _ORBITS_PER_CYCLE - 71


def _has_classi(name: ProductName) -> bool:
    return name.baseline >= "04.00"


def _write_images(folder, name, bands, scl, cloud, snow, b11, crs, transform, offset) -> tuple[list[str], list[str]]:
    """All JPEG 2000 files and the quicklook; returns the paths of the images and of the masks."""
    granule, stem = _granule(name), f"T{name.tile}_{name.sensing:%Y%m%dT%H%M%S}"
    images, masks = [], []

    def image(resolution: int, key: str, pixels: np.ndarray, *, block: int, bits: int = 8) -> None:
        path = f"{granule}/IMG_DATA/R{resolution}m/{stem}_{key}_{resolution}m.jp2"
        images.append(path)
        _write_jp2(folder / path, pixels, crs, transform, resolution=resolution, block=block, bits=bits)

    def mask(file: str, pixels: np.ndarray, *, resolution: int, block: int) -> None:
        masks.append(f"{granule}/QI_DATA/{file}.jp2")
        _write_jp2(folder / masks[-1], pixels, crs, transform, resolution=resolution, block=block, bits=8)

    coarse = {band: _mean_60m(pixels) for band, pixels in zip(BANDS[:3], bands[:3], strict=True)}
    picture = _true_colour(np.stack([coarse[band] for band in ("B04", "B03", "B02")]))
    for band in sorted(BANDS):
        image(10, band, _as_esa(bands[BANDS.index(band)], offset), block=1024, bits=15)
    image(20, "SCL", scl, block=640)
    for band in ("B02", "B03", "B04"):
        image(60, band, _as_esa(coarse[band], offset), block=192, bits=15)
    if b11 is not None:
        image(60, "B11", _as_esa(b11, offset), block=192, bits=15)
    image(60, "TCI", picture, block=192)
    mask("MSK_CLDPRB_20m", cloud, resolution=20, block=640)
    mask("MSK_SNWPRB_20m", snow, resolution=20, block=640)
    if _has_classi(name):
        kinds = np.stack([_majority_60m(np.isin(scl, classes)) for classes in ((8, 9), (10,), (11,))])
        mask("MSK_CLASSI_B00", kinds, resolution=60, block=256)
    quicklook = Image.fromarray(np.moveaxis(picture, 0, -1))
    quicklook.thumbnail((_QUICKLOOK_PIXELS, _QUICKLOOK_PIXELS))
    quicklook.save(folder / f"{name.name}-ql.jpg", quality=85)
    return images, masks


def _as_esa(dn: np.ndarray, offset: int) -> np.ndarray:
    """from_convention in stripes: it works in 32 bits, and a whole band has 120 million pixels."""
    out = np.empty_like(dn)
    for rows in (slice(top, top + 1024) for top in range(0, len(dn), 1024)):
        out[rows] = from_convention(dn[rows], offset=offset)
    return out


def _write_jp2(path, pixels, crs, transform, *, resolution: int, block: int, bits: int) -> None:
    """Lossless JPEG 2000 with ESA's tile size, progression and number of resolutions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    count, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="JP2OpenJPEG",
        dtype=pixels.dtype,
        count=count,
        height=height,
        width=width,
        crs=crs,
        transform=Affine(resolution, 0, transform.c, 0, -resolution, transform.f),
        QUALITY=100,
        REVERSIBLE="YES",
        YCC="NO",
        NBITS=bits,
        BLOCKXSIZE=block,
        BLOCKYSIZE=block,
        RESOLUTIONS=5,
        PROGRESSION="LRCP",
    ) as image:
        image.write(pixels)


def pool(image: np.ndarray, factor: int, how) -> np.ndarray:
    """`how` (np.mean, np.max, np.any) over `factor` x `factor` pixels; an incomplete block repeats its last ones."""
    missing = [(0, -length % factor) for length in image.shape]
    padded = np.pad(image, missing, mode="edge") if np.any(missing) else image
    rows, columns = padded.shape
    return how(padded.reshape(rows // factor, factor, columns // factor, factor), axis=(1, 3))


def _blocks(image: np.ndarray, factor: int) -> np.ndarray:
    """(rows, factor, columns, factor) view of an image, filled up with zeros at the south and east."""
    padded = np.pad(image, [(0, -length % factor) for length in image.shape])
    rows, columns = padded.shape
    return padded.reshape(rows // factor, factor, columns // factor, factor)


def _mean_60m(dn: np.ndarray) -> np.ndarray:
    """Mean of the valid pixels among 6 x 6, 0 where there is none."""
    blocks = _blocks(dn, 6)
    total, valid = blocks.sum((1, 3), dtype=np.uint32), (blocks != EMPTY_DN).sum((1, 3))
    return np.rint(total / np.maximum(valid, 1)).astype(np.uint16)


def _majority_60m(mask: np.ndarray) -> np.ndarray:
    """20 m to 60 m: 1 where at least 5 of the 9 pixels are set."""
    return (_blocks(mask, 3).sum((1, 3)) >= 5).astype(np.uint8)


def _true_colour(dn: np.ndarray) -> np.ndarray:
    """ESA's stretch: 8 bits, linear, 255 from reflectance 0.25 on; 0 is no data."""
    stretched = np.clip(np.rint(_TCI_GAIN * np.nan_to_num(reflectance(dn))), 1, 255)
    return np.where(dn == EMPTY_DN, 0, stretched).astype(np.uint8)


def _footprint(crs: str, transform: Affine, shape: tuple[int, int]) -> str:
    """The closed outline as EXT_POS_LIST writes it: latitude and longitude by turns, ended by a blank."""
    rows, columns = shape
    left, top, right, bottom = transform.c, transform.f, transform.c + 10 * columns, transform.f - 10 * rows
    lon, lat = warp_points(crs, "EPSG:4326", [left, right, right, left, left], [top, top, bottom, bottom, top])
    return "".join(f"{y:.12f} {x:.12f} " for x, y in zip(lon, lat, strict=True))


def _percentages(scl: np.ndarray) -> dict[str, float]:
    """ESA's percentages: no data of all pixels, everything else of the valid ones (true of real products)."""
    counts = np.bincount(scl.ravel(), minlength=12)
    valid = max(int(counts[1:].sum()), 1)
    shares = [100 * counts[0] / scl.size, *(100 * counts[1:] / valid)]
    return dict(zip(_PERCENTAGES, (round(float(s), 6) for s in shares), strict=True))


def _cloud_cover(percentages: dict[str, float]) -> float:
    """Classes 8, 9 and 10: Cloud_Coverage_Assessment."""
    return round(sum(percentages[_PERCENTAGES[cls]] for cls in (8, 9, 10)), 6)


def _timestamp(when: datetime, digits: int = 3) -> str:
    return f"{when:%Y-%m-%dT%H:%M:%S}.{'024' + '0' * (digits - 3)}Z"


def _made(name: ProductName) -> str:
    """Time of processing; the discriminator carries it in nominal products."""
    return f"{name.processed:%Y-%m-%dT%H:%M:%S}.000000Z"


def _identifier(name: ProductName, kind: str) -> str:
    """PDI identifiers: datastrip DS, tile TL."""
    middle = f"S{name.sensing:%Y%m%dT%H%M%S}" if kind == "DS" else f"A{_absolute_orbit(name):06d}_T{name.tile}"
    return f"{name.satellite}_OPER_MSI_L2A_{kind}_2APS_{name.discriminator}_{middle}_N{name.baseline}"


def _datatake(name: ProductName) -> str:
    return f"G{name.satellite}_{name.sensing:%Y%m%dT%H%M%S}_{_absolute_orbit(name):06d}_N{name.baseline}"


def _product_metadata(name, images, offset, footprint, percentages) -> str:
    files = "\n".join(f"            <IMAGE_FILE>{path.removesuffix('.jp2')}</IMAGE_FILE>" for path in images)
    offsets = ""
    if offset:
        values = "\n".join(f'        <BOA_ADD_OFFSET band_id="{band}">{offset}</BOA_ADD_OFFSET>' for band in range(13))
        offsets = f"      <BOA_ADD_OFFSET_VALUES_LIST>\n{values}\n      </BOA_ADD_OFFSET_VALUES_LIST>\n"
    shares = "\n".join(f"      <{element}>{share}</{element}>" for element, share in percentages.items())
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>{_timestamp(name.sensing)}</PRODUCT_START_TIME>
      <PRODUCT_STOP_TIME>{_timestamp(name.sensing)}</PRODUCT_STOP_TIME>
      <PRODUCT_URI>{name.name}.SAFE</PRODUCT_URI>
      <PROCESSING_LEVEL>Level-2A</PROCESSING_LEVEL>
      <PRODUCT_TYPE>S2MSI2A</PRODUCT_TYPE>
      <PROCESSING_BASELINE>{name.baseline}</PROCESSING_BASELINE>
      <GENERATION_TIME>{_made(name)}</GENERATION_TIME>
      <Datatake datatakeIdentifier="{_datatake(name)}">
        <SPACECRAFT_NAME>Sentinel-{name.satellite[1:]}</SPACECRAFT_NAME>
        <DATATAKE_TYPE>INS-NOBS</DATATAKE_TYPE>
        <DATATAKE_SENSING_START>{_timestamp(name.sensing)}</DATATAKE_SENSING_START>
        <SENSING_ORBIT_NUMBER>{name.relative_orbit}</SENSING_ORBIT_NUMBER>
        <SENSING_ORBIT_DIRECTION>DESCENDING</SENSING_ORBIT_DIRECTION>
      </Datatake>
      <Product_Organisation>
        <Granule_List>
          <Granule datastripIdentifier="{_identifier(name, "DS")}"
                   granuleIdentifier="{_identifier(name, "TL")}" imageFormat="JPEG2000">
{files}
          </Granule>
        </Granule_List>
      </Product_Organisation>
    </Product_Info>
    <Product_Image_Characteristics>
      <Special_Values>
        <SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT>
        <SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX>
      </Special_Values>
      <QUANTIFICATION_VALUES_LIST>
        <BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>
      </QUANTIFICATION_VALUES_LIST>
{offsets}    </Product_Image_Characteristics>
  </n1:General_Info>
  <n1:Geometric_Info>
    <Product_Footprint>
      <Product_Footprint>
        <Global_Footprint>
          <EXT_POS_LIST>{footprint}</EXT_POS_LIST>
        </Global_Footprint>
      </Product_Footprint>
      <RASTER_CS_TYPE>POINT</RASTER_CS_TYPE>
      <PIXEL_ORIGIN>1</PIXEL_ORIGIN>
    </Product_Footprint>
  </n1:Geometric_Info>
  <n1:Quality_Indicators_Info>
    <Cloud_Coverage_Assessment>{_cloud_cover(percentages)}</Cloud_Coverage_Assessment>
    <Image_Content_QI>
{shares}
    </Image_Content_QI>
  </n1:Quality_Indicators_Info>
</n1:Level-2A_User_Product>
"""


def _tile_metadata(name, crs, transform, shape, percentages, masks, sun_elevation, sun_azimuth) -> str:
    sizes = "\n".join(
        f'      <Size resolution="{metres}">\n        <NROWS>{-(-shape[0] * 10 // metres)}</NROWS>\n'
        f"        <NCOLS>{-(-shape[1] * 10 // metres)}</NCOLS>\n      </Size>"
        for metres in (10, 20, 60)
    )
    corner = f"        <ULX>{_number(transform.c)}</ULX>\n        <ULY>{_number(transform.f)}</ULY>"
    positions = "\n".join(
        f'      <Geoposition resolution="{metres}">\n{corner}\n        <XDIM>{metres}</XDIM>\n'
        f"        <YDIM>-{metres}</YDIM>\n      </Geoposition>"
        for metres in (10, 20, 60)
    )
    shares = "\n".join(f"      <{element}>{share:.6f}</{element}>" for element, share in percentages.items())
    files = "\n".join(f'      <MASK_FILENAME type="{Path(path).name[:10]}">{path}</MASK_FILENAME>' for path in masks)
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-2A_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2_PDI_Level-2A_Tile_Metadata.xsd">
  <n1:General_Info>
    <TILE_ID metadataLevel="Brief">{_identifier(name, "TL")}</TILE_ID>
    <DATASTRIP_ID metadataLevel="Standard">{_identifier(name, "DS")}</DATASTRIP_ID>
    <SENSING_TIME metadataLevel="Standard">{_timestamp(name.sensing, 6)}</SENSING_TIME>
  </n1:General_Info>
  <n1:Geometric_Info>
    <Tile_Geocoding metadataLevel="Brief">
      <HORIZONTAL_CS_NAME>{_crs_name(crs)}</HORIZONTAL_CS_NAME>
      <HORIZONTAL_CS_CODE>{crs}</HORIZONTAL_CS_CODE>
{sizes}
{positions}
    </Tile_Geocoding>
    <Tile_Angles metadataLevel="Standard">
      <Mean_Sun_Angle>
        <ZENITH_ANGLE unit="deg">{90 - sun_elevation:.6f}</ZENITH_ANGLE>
        <AZIMUTH_ANGLE unit="deg">{sun_azimuth:.6f}</AZIMUTH_ANGLE>
      </Mean_Sun_Angle>
    </Tile_Angles>
  </n1:Geometric_Info>
  <n1:Quality_Indicators_Info metadataLevel="Standard">
    <Image_Content_QI>
      <CLOUDY_PIXEL_PERCENTAGE>{_cloud_cover(percentages):.6f}</CLOUDY_PIXEL_PERCENTAGE>
{shares}
    </Image_Content_QI>
    <Pixel_Level_QI geometry="FULL_RESOLUTION">
{files}
    </Pixel_Level_QI>
  </n1:Quality_Indicators_Info>
</n1:Level-2A_Tile_ID>
"""


def _number(value: float) -> str:
    """Whole where it is, else with all its digits: a georeference must come back exactly."""
    return str(int(value)) if value == int(value) else repr(float(value))


def _crs_name(crs: str) -> str:
    return CRS.from_user_input(crs).to_dict(projjson=True)["name"].replace("WGS 84", "WGS84")


def _manifest(folder: Path, name: ProductName, footprint: str) -> str:
    """manifest.safe of the files below the folder; the quicklook is not in it, the Data Space adds that one."""
    algorithm = "SHA3-256" if _has_classi(name) else "MD5"
    objects = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.endswith("-ql.jpg"):
            continue
        relative = path.relative_to(folder).as_posix()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, algorithm.lower().replace("-", "_")).hexdigest()
        kind = "text/xml" if path.suffix == ".xml" else "application/octet-stream"
        objects.append(f"""    <dataObject ID="{_object_id(relative)}">
      <byteStream mimeType="{kind}" size="{path.stat().st_size}">
        <fileLocation href="./{relative}" locatorType="URL"/>
        <checksum checksumName="{algorithm}">{digest.upper() if path.suffix == ".jp2" else digest}</checksum>
      </byteStream>
    </dataObject>""")
    pointers = "\n".join(
        f"""      <xfdu:contentUnit unitType="Data Unit">
        <dataObjectPointer dataObjectID="{text.split('"')[1]}"/>
      </xfdu:contentUnit>"""
        for text in objects
    )
    period = f"<safe:acquisitionPeriod><safe:startTime>{_timestamp(name.sensing)}</safe:startTime>"
    platform = f"<safe:platform><safe:familyName>SENTINEL</safe:familyName><safe:number>{name.satellite[1:]}"
    processing = f'<safe:processing name="Generation of Level-2A User Product" start="{_made(name)}">'
    outline = f"<safe:footPrint><gml:coordinates>{footprint}</gml:coordinates>"
    metadata = [
        _metadata_object("acquisitionPeriod", "DMD", f"{period}</safe:acquisitionPeriod>"),
        _metadata_object("platform", "DMD", f"{platform}</safe:number></safe:platform>"),
        _metadata_object("processing", "PDI", f"{processing}</safe:processing>"),
        _metadata_object("measurementFrameSet", "DMD", f"<safe:frameSet>{outline}</safe:footPrint></safe:frameSet>"),
    ]
    newline = "\n"
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<xfdu:XFDU xmlns:gml="http://www.opengis.net/gml" xmlns:safe="http://www.esa.int/safe/sentinel/1.1"
           xmlns:xfdu="urn:ccsds:schema:xfdu:1"
           version="esa/safe/sentinel/1.1/sentinel-2/msi/archive_l2a_user_product">
  <informationPackageMap>
    <xfdu:contentUnit dmdID="acquisitionPeriod platform" pdiID="processing"
                      textInfo="SENTINEL-2 MSI Level-2A User Product" unitType="Product_Level-2A">
{pointers}
    </xfdu:contentUnit>
  </informationPackageMap>
  <metadataSection>
{newline.join(metadata)}
  </metadataSection>
  <dataObjectSection>
{newline.join(objects)}
  </dataObjectSection>
</xfdu:XFDU>
"""


def _metadata_object(identifier: str, category: str, content: str) -> str:
    return f"""    <metadataObject ID="{identifier}" category="{category}">
      <metadataWrap mimeType="text/xml" vocabularyName="Sentinel-SAFE">
        <xmlData>{content}</xmlData>
      </metadataWrap>
    </metadataObject>"""


def _object_id(relative: str) -> str:
    """ESA's identifier of a file in the manifest."""
    known = {
        "MTD_MSIL2A.xml": "S2_Level-2A_Product_Metadata",
        "MTD_TL.xml": "S2_Level-2A_Tile1_Metadata",
        "MSK_CLDPRB_20m.jp2": "CloudPrbMask_Tile1_Data",
        "MSK_SNWPRB_20m.jp2": "SnowPrbMask_Tile1_Data",
        "MSK_CLASSI_B00.jp2": "ClassiPixelsMask_Band_00m_0_Tile1_Data",
    }
    path = Path(relative)
    return known.get(path.name) or f"IMG_DATA_Band_{'_'.join(path.stem.split('_')[-2:])}_Tile1_Data"


def _flush(folder: Path) -> None:
    """All files and folders on the disk, before the name says that they are there."""
    for path in [folder, *folder.rglob("*")]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

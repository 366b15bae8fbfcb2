"""The XML files of a Level-2A product: MTD_MSIL2A.xml, MTD_TL.xml and manifest.safe, and the identifiers in them."""

import hashlib
from datetime import date, datetime
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform as warp_points

from cloudjob.names import ProductName, stamp
from cloudjob.sentinel2 import masks

_PERCENTAGES = (  # ESA's elements for the shares of the scene-classification classes 0, 1, 2 ...
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
_ORBITS = {"S2A": (date(2022, 10, 5), 38058, 23), "S2B": (date(2020, 7, 5), 17394, 65)}  # day, absolute, relative
_ORBITS_PER_CYCLE = 143  # in 10 days


def granule(name: ProductName) -> str:
    """Path of the granule's folder below the product's."""
    return f"GRANULE/L2A_T{name.tile}_A{absolute_orbit(name):06d}_{stamp(name.sensing)}"


def absolute_orbit(name: ProductName) -> int:
    """The absolute orbit nearest in time that has the name's relative orbit, counted from a known one."""
    day, absolute, relative = _ORBITS.get(name.satellite, _ORBITS["S2A"])
    near = absolute + round((name.sensing.date() - day).days * _ORBITS_PER_CYCLE / 10)
    ahead = (name.relative_orbit - relative - (near - absolute)) % _ORBITS_PER_CYCLE
    return near + (ahead + 71) % _ORBITS_PER_CYCLE - 71


def is_baseline_4(name: ProductName) -> bool:
    """Whether the product is of baseline 04.00 or later: with MSK_CLASSI and SHA3-256 instead of MD5."""
    return name.baseline >= "04.00"


def footprint_of(crs: str, transform: Affine, shape: tuple[int, int]) -> str:
    """The closed outline as EXT_POS_LIST writes it: latitude and longitude in turn, with a blank at the end."""
    rows, columns = shape
    left, top, right, bottom = transform.c, transform.f, transform.c + 10 * columns, transform.f - 10 * rows
    lon, lat = warp_points(crs, "EPSG:4326", [left, right, right, left, left], [top, top, bottom, bottom, top])
    return "".join(f"{y:.12f} {x:.12f} " for x, y in zip(lon, lat, strict=True))


def percentages_of(scl: np.ndarray) -> dict[str, float]:
    """ESA's percentages: no data relative to all pixels, the others to the valid ones (as in real products)."""
    counts = np.bincount(scl.ravel(), minlength=12)
    valid = max(int(counts[1:].sum()), 1)
    shares = [100 * counts[0] / scl.size, *(100 * counts[1:] / valid)]
    return dict(zip(_PERCENTAGES, (round(float(s), 6) for s in shares), strict=True))


def _cloud_cover(percentages: dict[str, float]) -> float:
    """Cloud_Coverage_Assessment: medium and high probability clouds, and thin cirrus."""
    return round(sum(percentages[_PERCENTAGES[value]] for value in masks.SCL_CLOUDS), 6)


def _timestamp(when: datetime, digits: int = 3) -> str:
    return f"{when:%Y-%m-%dT%H:%M:%S}.{'024' + '0' * (digits - 3)}Z"


def _made(name: ProductName) -> str:
    """Time of processing."""
    return f"{name.processed:%Y-%m-%dT%H:%M:%S}.000000Z"


def _identifier(name: ProductName, kind: str) -> str:
    """Identifier of the datastrip (kind "DS") or of the tile ("TL")."""
    middle = f"S{stamp(name.sensing)}" if kind == "DS" else f"A{absolute_orbit(name):06d}_T{name.tile}"
    return f"{name.satellite}_OPER_MSI_L2A_{kind}_2APS_{name.discriminator}_{middle}_N{name.baseline}"


def _datatake(name: ProductName) -> str:
    return f"G{name.satellite}_{stamp(name.sensing)}_{absolute_orbit(name):06d}_N{name.baseline}"


def _datatake_element(name: ProductName) -> str:
    return f"""      <Datatake datatakeIdentifier="{_datatake(name)}">
        <SPACECRAFT_NAME>Sentinel-{name.satellite[1:]}</SPACECRAFT_NAME>
        <DATATAKE_TYPE>INS-NOBS</DATATAKE_TYPE>
        <DATATAKE_SENSING_START>{_timestamp(name.sensing)}</DATATAKE_SENSING_START>
        <SENSING_ORBIT_NUMBER>{name.relative_orbit}</SENSING_ORBIT_NUMBER>
        <SENSING_ORBIT_DIRECTION>DESCENDING</SENSING_ORBIT_DIRECTION>
      </Datatake>"""


def _offsets(offset: int) -> str:
    """BOA_ADD_OFFSET of each of the 13 bands; no element where it is 0."""
    if not offset:
        return ""
    values = "\n".join(f'        <BOA_ADD_OFFSET band_id="{band}">{offset}</BOA_ADD_OFFSET>' for band in range(13))
    return f"      <BOA_ADD_OFFSET_VALUES_LIST>\n{values}\n      </BOA_ADD_OFFSET_VALUES_LIST>\n"


def product_metadata(
    name: ProductName, images: list[str], offset: int, footprint: str, percentages: dict[str, float]
) -> str:
    """MTD_MSIL2A.xml of a product with these image files."""
    files = "\n".join(f"            <IMAGE_FILE>{path.removesuffix('.jp2')}</IMAGE_FILE>" for path in images)
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
{_datatake_element(name)}
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
{_offsets(offset)}    </Product_Image_Characteristics>
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


def tile_metadata(
    name: ProductName,
    crs: str,
    transform: Affine,
    shape: tuple[int, int],
    percentages: dict[str, float],
    mask_files: list[str],
    sun: tuple[float, float],
) -> str:
    """MTD_TL.xml of a tile with these mask files; `sun` is its elevation and azimuth in degrees."""
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
    files = "\n".join(
        f'      <MASK_FILENAME type="{Path(path).name[:10]}">{path}</MASK_FILENAME>' for path in mask_files
    )
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
        <ZENITH_ANGLE unit="deg">{90 - sun[0]:.6f}</ZENITH_ANGLE>
        <AZIMUTH_ANGLE unit="deg">{sun[1]:.6f}</AZIMUTH_ANGLE>
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
    """An integer if the value is whole, else all its digits: a georeference must survive the round trip exactly."""
    return str(int(value)) if value == int(value) else repr(float(value))


def _crs_name(crs: str) -> str:
    return CRS.from_user_input(crs).to_dict(projjson=True)["name"].replace("WGS 84", "WGS84")


def manifest(folder: Path, name: ProductName, footprint: str) -> str:
    """manifest.safe of the files below the folder, except the quicklook, which the Data Space adds."""
    algorithm = "SHA3-256" if is_baseline_4(name) else "MD5"
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

"""What GDAL does not find in the files by itself: each layer of the GeoTIFF as an image, and the place of the .h5."""

from typing import Any
from xml.sax.saxutils import escape

from rasterio.crs import CRS

from cloudjob.pixels import BANDS
from cloudjob.restoration.output.blocks import SIDE
from cloudjob.restoration.output.header import Header, Layer

_COLOURS = dict(zip(BANDS, ("Red", "Green", "Blue"), strict=False))


def view(header: Header, number: int, tif: str) -> str:
    """The layer `number` (from 1) of the GeoTIFF `tif`, which lies beside it, as a VRT of one band: no pixel twice."""
    layer, (height, width) = header.layers[number - 1], header.shape
    size = f'RasterXSize="{width}" RasterYSize="{height}"'
    window = f'xOff="0" yOff="0" xSize="{width}" ySize="{height}"'
    known = f'{size} DataType="UInt16" BlockXSize="{SIDE}" BlockYSize="{SIDE}"'
    block = f'blockXSize="{SIDE}" blockYSize="{SIDE}"'
    return f"""<VRTDataset {size}>
{_place(header)}  <VRTRasterBand dataType="{_type(layer)}" band="1" {block}>
{_facts(layer)}    <SimpleSource>
      <SourceFilename relativeToVRT="1">{escape(tif)}</SourceFilename>
      <SourceBand>{number}</SourceBand>
      <SourceProperties {known}/>
      <SrcRect {window}/>
      <DstRect {window}/>
    </SimpleSource>
  </VRTRasterBand>
</VRTDataset>
"""


def beside_h5(header: Header) -> str:
    """The place of the layers and the names of their bands, which GDAL's HDF5 driver takes from `<file>.aux.xml`."""
    layers = {"reconstructed": [header.layers[4]], "reflectance": header.layers[:4]}
    layers |= {"uncertainty": header.layers[5:]} if header.uncertainty else {}
    parts = []
    for name, bands in layers.items():
        facts = [f'  <PAMRasterBand band="{n}">\n{_facts(band)}  </PAMRasterBand>\n' for n, band in enumerate(bands, 1)]
        content = f"<PAMDataset>\n{_place(header)}{''.join(facts)}</PAMDataset>\n"
        parts.append(f'<Subdataset name="//{name}">\n{content}</Subdataset>\n')
    return f"<PAMDataset>\n{''.join(parts)}</PAMDataset>\n"


def _place(header: Header) -> str:
    corner = ", ".join(map(repr, header.transform.to_gdal()))
    crs = CRS.from_user_input(header.crs) if header.crs else None
    known = f'  <SRS dataAxisToSRSAxisMapping="{_axes(crs)}">{escape(crs.to_wkt())}</SRS>\n' if crs else ""
    return f"{known}  <GeoTransform>{corner}</GeoTransform>\n"


def _axes(crs: CRS) -> str:
    """Which axes of the CRS columns and rows go along: its authority may have latitude, or northing, first."""
    told = CRS.from_wkt(crs.to_wkt()).to_dict(projjson=True)
    told = told.get("source_crs", told)  # of one with TOWGS84
    first = told["coordinate_system"]["axis"][0]["name"].lower()
    return "2,1" if "latitude" in first or "northing" in first else "1,2"


def _type(layer: Layer) -> str:
    return {"uint8": "Byte", "uint16": "UInt16"}[layer.dtype]


def _facts(layer: Layer) -> str:
    facts: dict[str, Any] = {"Description": layer.name, "NoDataValue": layer.empty}
    facts["ColorInterp"] = _COLOURS.get(layer.name)
    facts |= {"Offset": layer.offset, "Scale": layer.scale} if layer.scale != 1 else {}
    return "".join(f"    <{key}>{value}</{key}>\n" for key, value in facts.items() if value is not None)

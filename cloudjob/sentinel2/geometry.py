"""Where a tile lies on the Earth, and where the sun stands above it."""

import math
import re
from datetime import UTC, datetime

from rasterio._err import CPLE_BaseError  # what GDAL reports has no other common name
from rasterio.errors import CRSError
from rasterio.warp import transform as warp_points
from rasterio.warp import transform_geom
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from cloudjob import footprints
from cloudjob.errors import ConfigError

_NEAR = math.cos(math.radians(20))
WARP_ERRORS = (CRSError, CPLE_BaseError)  # there is no such CRS, or no such place in it


def tile_corner(tile: str) -> tuple[str, int, int]:
    """CRS ("EPSG:32605"), easting and northing of the upper left corner of a tile such as 05WPS.

    The 100 km squares of the Military Grid Reference System (NGA.SIG.0012, section 3), moved outward to ESA's 60 m
    grid. ConfigError where there is no such square.
    """
    match = re.fullmatch(r"(\d\d)([C-HJ-NP-X])([A-HJ-NP-Z])([A-HJ-NP-V])", tile)
    zone = int(match[1]) if match else 0
    columns = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")[zone % 3]
    if match is None or not 1 <= zone <= 60 or match[3] not in columns:
        raise ConfigError(f"no such Sentinel-2 tile: {tile!r}; expected e.g. 05WPS (UTM zone, band, 100 km square)")
    easting = 100_000 * (columns.index(match[3]) + 1)
    rows = "ABCDEFGHJKLMNPQRSTUV"
    row = (rows.index(match[4]) - (5 if zone % 2 == 0 else 0)) % 20
    south = 8 * "CDEFGHJKLMNPQRSTUVWX".index(match[2]) - 80  # degrees, of the latitude band
    arc = math.radians(south)  # length of the meridian on the ellipsoid, by the first terms of its series
    meridian = 0.9996 * (111132.95 * south - 16038.5 * math.sin(2 * arc) + 16.8 * math.sin(4 * arc))
    first = math.floor((meridian - 10_000) / 100_000)  # at its sides a zone's band of the south reaches farther
    top = 100_000 * (first + (row - first) % 20 + 1)
    hemisphere = "326" if south >= 0 else "327"
    return (
        f"EPSG:{hemisphere}{zone:02d}",
        easting // 60 * 60,
        -(-top // 60) * 60 + (0 if south >= 0 else 10_000_000),
    )


def lon_lat(crs: str, x: float, y: float) -> tuple[float, float] | None:
    """Longitude and latitude, in degrees, of a point of a CRS; None where it has none, or there is no such CRS."""
    try:
        (lon,), (lat,) = warp_points(crs, "EPSG:4326", [x], [y])
    except WARP_ERRORS:
        return None
    return (lon, lat) if math.isfinite(lon + lat) else None


def ground_near(footprint: dict, crs: str, middle: tuple[float, float]) -> list[BaseGeometry]:
    """The polygons of a footprint (GeoJSON, degrees) in a map's CRS, without those farther than 20 degrees from
    the `middle` of the map (longitude, latitude): there a projection has no place for them, or a wrong one."""
    lon, lat = (math.radians(degrees) for degrees in middle)
    found = []
    whole = shape(footprints.split(footprint))
    for polygon in getattr(whole, "geoms", [whole]):
        x, y = math.radians(polygon.centroid.x), math.radians(polygon.centroid.y)
        cosine = math.sin(lat) * math.sin(y) + math.cos(lat) * math.cos(y) * math.cos(x - lon)
        if cosine > _NEAR:
            found.append(shape(transform_geom("EPSG:4326", crs, mapping(polygon))))
    return found


def tile_centre(tile: str) -> tuple[float, float]:
    """Longitude and latitude, in degrees, of the middle of a tile."""
    crs, x, y = tile_corner(tile)
    lon, lat = warp_points(crs, "EPSG:4326", [x + 54_900], [y - 54_900])
    return lon[0], lat[0]


def sun_position(when: datetime, lon: float, lat: float) -> tuple[float, float]:
    """Elevation and azimuth (clockwise from north) of the sun in degrees, to about 0.05 degrees.

    The low-precision formulas of the Astronomical Almanac (section C, "Sun").
    """
    days = (when - datetime(2000, 1, 1, 12, tzinfo=UTC)).total_seconds() / 86400
    anomaly = math.radians(357.528 + 0.9856003 * days)
    longitude = math.radians(280.460 + 0.9856474 * days + 1.915 * math.sin(anomaly) + 0.020 * math.sin(2 * anomaly))
    tilt = math.radians(23.439 - 4e-7 * days)
    ascension = math.atan2(math.cos(tilt) * math.sin(longitude), math.cos(longitude))
    declination = math.asin(math.sin(tilt) * math.sin(longitude))
    hour = math.radians((280.46062 + 360.98564737 * days + lon) % 360) - ascension
    phi = math.radians(lat)
    up = math.sin(phi) * math.sin(declination) + math.cos(phi) * math.cos(declination) * math.cos(hour)
    east = -math.cos(declination) * math.sin(hour)
    north = math.cos(phi) * math.sin(declination) - math.sin(phi) * math.cos(declination) * math.cos(hour)
    return math.degrees(math.asin(up)), math.degrees(math.atan2(east, north)) % 360

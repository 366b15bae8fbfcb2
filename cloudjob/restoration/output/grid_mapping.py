"""A coordinate reference system as CF's grid mapping: the names of Appendix F of the CF conventions 1.10."""

from typing import Any

from affine import Affine
from rasterio.crs import CRS

_EASTING = {"False easting": "false_easting", "Easting at false origin": "false_easting"}
_NORTHING = {"False northing": "false_northing", "Northing at false origin": "false_northing"}
_SHIFTS = _EASTING | _NORTHING
_ORIGIN = {"Latitude of natural origin": "latitude_of_projection_origin"}
_POINT = _ORIGIN | {"Longitude of natural origin": "longitude_of_projection_origin"}
_CONE = {
    "Latitude of false origin": "latitude_of_projection_origin",
    "Longitude of false origin": "longitude_of_central_meridian",
    "Latitude of 1st standard parallel": "standard_parallel",
    "Latitude of 2nd standard parallel": "standard_parallel",
}
# EPSG's methods: their name in CF, and CF's names of EPSG's parameters
_METHODS: dict[str, tuple[str, dict[str, str]]] = {
    "Transverse Mercator": (
        "transverse_mercator",
        _ORIGIN
        | {
            "Longitude of natural origin": "longitude_of_central_meridian",
            "Scale factor at natural origin": "scale_factor_at_central_meridian",
        },
    ),
    "Polar Stereographic (variant A)": (
        "polar_stereographic",
        _ORIGIN
        | {
            "Longitude of natural origin": "straight_vertical_longitude_from_pole",
            "Scale factor at natural origin": "scale_factor_at_projection_origin",
        },
    ),
    "Polar Stereographic (variant B)": (
        "polar_stereographic",
        {
            "Latitude of standard parallel": "standard_parallel",
            "Longitude of origin": "straight_vertical_longitude_from_pole",
        },
    ),
    "Lambert Conic Conformal (2SP)": ("lambert_conformal_conic", _CONE),
    "Albers Equal Area": ("albers_conical_equal_area", _CONE),
    "Lambert Azimuthal Equal Area": ("lambert_azimuthal_equal_area", _POINT),
    "Orthographic": ("orthographic", _POINT),
    "Sinusoidal": ("sinusoidal", {"Longitude of natural origin": "longitude_of_projection_origin"}),
    "Mercator (variant A)": (
        "mercator",
        {
            "Longitude of natural origin": "longitude_of_projection_origin",
            "Scale factor at natural origin": "scale_factor_at_projection_origin",
        },
    ),
    "Mercator (variant B)": (
        "mercator",
        {
            "Latitude of 1st standard parallel": "standard_parallel",
            "Longitude of natural origin": "longitude_of_projection_origin",
        },
    ),
}


def grid_mapping(crs: CRS, transform: Affine) -> dict[str, Any]:
    """The attributes of a grid mapping variable: CF's own, the WKT, and GDAL's GeoTransform.

    A projection that CF does not name has no `grid_mapping_name`: its WKT tells all.
    """
    wkt = crs.to_wkt()
    # By way of the text: of a CRS by its code PROJ now tells a datum, now an ensemble of them, as its cache has it.
    told = CRS.from_wkt(wkt).to_dict(projjson=True)
    found: dict[str, Any] = {"crs_wkt": wkt, "spatial_ref": wkt}
    found["GeoTransform"] = " ".join(map(repr, transform.to_gdal()))
    if told.get("type") == "BoundCRS":  # of an old WKT with TOWGS84
        told = told["source_crs"]
    base = told.get("base_crs", told)
    if told.get("type") == "ProjectedCRS":
        found |= _projection(told["conversion"]) | {"projected_crs_name": told["name"]}
    elif told.get("type") == "GeographicCRS":
        found["grid_mapping_name"] = "latitude_longitude"
    return found | _datum(base)


def _projection(conversion: dict) -> dict[str, Any]:
    name, parameters = _METHODS.get(conversion["method"]["name"], ("", {}))
    if not name:
        return {}
    found: dict[str, Any] = {"grid_mapping_name": name}
    for parameter in conversion["parameters"]:
        if ours := (parameters | _SHIFTS).get(parameter["name"]):
            value = float(parameter["value"]) * _degrees(parameter["unit"])
            found[ours] = [*found[ours], value] if ours in found else [value]
    found = {key: value[0] if len(value) == 1 and key != "grid_mapping_name" else value for key, value in found.items()}
    if name == "polar_stereographic" and "latitude_of_projection_origin" not in found:
        found["latitude_of_projection_origin"] = 90.0 if found["standard_parallel"] > 0 else -90.0
    return found


def _degrees(unit: str | dict) -> float:
    """What a number of this unit is multiplied by: angles become degrees, lengths keep the unit of the axes."""
    if isinstance(unit, dict) and unit.get("type") == "AngularUnit":
        return float(unit["conversion_factor"]) * 57.29577951308232
    return 1.0


def _datum(base: dict) -> dict[str, Any]:
    """What CF tells of a geographic system: datum, ellipsoid, prime meridian."""
    datum = base.get("datum") or base.get("datum_ensemble") or {}
    ellipsoid, meridian = datum.get("ellipsoid", {}), datum.get("prime_meridian", {})
    found: dict[str, Any] = {"geographic_crs_name": base.get("name"), "horizontal_datum_name": datum.get("name")}
    found["reference_ellipsoid_name"] = ellipsoid.get("name")
    found["prime_meridian_name"] = meridian.get("name", "Greenwich")
    longitude = meridian.get("longitude", 0.0)
    if isinstance(longitude, dict):  # in another unit than degrees
        longitude = longitude["value"] * _degrees(longitude["unit"])
    found["longitude_of_prime_meridian"] = float(longitude)
    if "radius" in ellipsoid:
        found["earth_radius"] = float(ellipsoid["radius"])
    elif "semi_major_axis" in ellipsoid:
        longest = float(ellipsoid["semi_major_axis"])
        found["semi_major_axis"] = longest
        if "semi_minor_axis" in ellipsoid:
            found["semi_minor_axis"] = shortest = float(ellipsoid["semi_minor_axis"])
            found["inverse_flattening"] = longest / (longest - shortest) if shortest < longest else 0.0
        else:
            found["inverse_flattening"] = inverse = float(ellipsoid["inverse_flattening"])
            found["semi_minor_axis"] = longest - longest / inverse if inverse else longest
    return {key: value for key, value in found.items() if value is not None}


def axes(crs: CRS | None) -> dict[str, dict[str, str]]:
    """The attributes of the coordinates x and y."""
    if crs is None:
        return {"x": {"axis": "X", "long_name": "x"}, "y": {"axis": "Y", "long_name": "y"}}
    if crs.is_geographic:
        return {
            "x": {"axis": "X", "standard_name": "longitude", "units": "degrees_east"},
            "y": {"axis": "Y", "standard_name": "latitude", "units": "degrees_north"},
        }
    units = crs.linear_units if crs.is_projected else "metre"
    units = "m" if units in ("metre", "meter", "unknown") else units.replace(" ", "_")
    return {
        name: {"axis": name.upper(), "standard_name": f"projection_{name}_coordinate", "units": units} for name in "xy"
    }

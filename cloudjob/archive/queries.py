"""Finds the products of an archive that match a STAC or OData query, in the order that it asks for."""

import ast
import operator
import re
from datetime import UTC, datetime
from typing import Any

import shapely
from shapely.geometry import MultiPolygon, Polygon, box, shape

from cloudjob.archive.catalogue import Entry
from cloudjob.footprints import parts

_OPERATIONS = {
    **dict.fromkeys(("=", "eq"), operator.eq),  # CQL2; OData, STAC's query extension
    **dict.fromkeys(("<>", "ne", "neq"), operator.ne),
    **dict.fromkeys(("<", "lt"), operator.lt),
    **dict.fromkeys(("<=", "le", "lte"), operator.le),
    **dict.fromkeys((">", "gt"), operator.gt),
    **dict.fromkeys((">=", "ge", "gte"), operator.ge),
    "in": lambda value, choice: value in choice,
    "between": lambda value, low, high: low <= value <= high,
    "s_intersects": shapely.intersects,
    "contains": str.__contains__,
    "startswith": str.startswith,
    "endswith": str.endswith,
    "and": lambda *terms: all(terms),
    "or": lambda *terms: any(terms),
    "not": operator.not_,
}
_DATES = "ContentDate/Start|ContentDate/End|PublicationDate|ModificationDate"
_CLAUSE = re.compile(
    r"OData\.CSC\.Intersects\(\s*area\s*=\s*geography'SRID=4326;(?P<area>[^']+)'\s*\)"
    r"|(?P<test>contains|startswith|endswith)\(Name,\s*'(?P<text>[^']*)'\)"
    r"|(?:Attributes/OData\.CSC\.\w+Attribute/any\(\s*(?P<any>\w+)\s*:\s*(?P=any)/Name eq '(?P<attribute>\w+)' and "
    rf"(?P=any)/OData\.CSC\.\w+Attribute/Value|(?P<field>Collection/Name|Name|Online|{_DATES}))"
    r" (?P<sign>eq|ne|lt|le|gt|ge) (?P<value>'[^']*'|[^\s)]+)(?(any)\s*\))"
)


def search_stac(entries: list[Entry], body: dict) -> list[Entry]:
    """The products that the body of POST /v1/search asks for, in its order.

    This and `search_odata` raise ValueError, KeyError, TypeError, AttributeError or ShapelyError for a query that they
    do not understand.
    """
    query = _from_stac(body)
    found = [entry for entry in entries if _value(entry, query)]
    for rule in reversed(body.get("sortby") or [{"field": "datetime", "direction": "desc"}]):
        field = rule["field"].removeprefix("properties.")
        found.sort(key=lambda entry: entry.queryables[field], reverse=rule.get("direction") == "desc")
    return found


def search_odata(entries: list[Entry], text: str, order: str) -> list[Entry]:
    """The products that an OData $filter ("" for all) asks for, in the order of an $orderby."""
    match = re.fullmatch(rf"({_DATES})( asc| desc)?", order)
    if not match:
        raise ValueError(f"$orderby={order}: not sortable")
    query = _from_odata(text) if text.strip() else True
    found = [entry for entry in entries if _value(entry, query)]
    return sorted(found, key=lambda entry: (entry.queryables[match[1]], entry.id), reverse=match[2] == " desc")


def selected(item: dict, fields: dict) -> dict:
    """The members of an item that a search's `fields` includes, as dotted paths; all of it where it includes none (STAC
    API, Fields extension)."""
    found: dict = {}
    for path in fields.get("include", []):
        source, target, (*outer, last) = item, found, path.split(".")
        for name in outer:
            source = source.get(name) or {}
        if last in source:
            for name in outer:
                target = target.setdefault(name, {})
            target[last] = source[last]
    return found or item


def _from_stac(body: dict) -> dict:
    times = body.get("datetime", "..").split("/")  # one instant, or an interval whose ends may be open
    start, end = (None if time in ("", "..") else _instant(time) for time in (times[0], times[-1]))
    rules = [
        ("in", "collection", body.get("collections")),
        ("in", "id", body.get("ids")),
        ("s_intersects", "geometry", _box(*body["bbox"]) if "bbox" in body else None),
        ("s_intersects", "geometry", body.get("intersects")),
        (">=", "datetime", start),
        ("<=", "datetime", end),
        *((name, field, value) for field, tests in body.get("query", {}).items() for name, value in tests.items()),
    ]
    terms = [{"op": name, "args": [{"property": field}, value]} for name, field, value in rules if value is not None]
    return {"op": "and", "args": [*terms, body.get("filter", True)]}


def _box(west: float, south: float, east: float, north: float) -> Polygon | MultiPolygon:
    """Across 180 degrees, west is greater than east (RFC 7946, 5.2)."""
    return box(west, south, east, north) if west <= east else MultiPolygon(parts(box(west, south, east + 360, north)))


def _from_odata(text: str) -> dict:
    """A $filter as a CQL2-JSON expression. Each clause is replaced by a name, and the rest is parsed as Python."""
    clauses: dict[str, dict] = {}

    def name_of(match: re.Match) -> str:
        name = f"clause{len(clauses)}"
        clauses[name] = _clause(match)
        return name

    try:
        tree = ast.parse(_CLAUSE.sub(name_of, text).strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"Invalid field or clause in $filter: {text}") from None
    return _joined(tree, clauses)


def _joined(node: ast.expr, clauses: dict[str, dict]) -> dict:
    match node:
        case ast.Name(id=name):
            return clauses[name]
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return {"op": "not", "args": [_joined(inner, clauses)]}
        case ast.BoolOp(op=word, values=parts):
            return {"op": type(word).__name__.lower(), "args": [_joined(part, clauses) for part in parts]}
    raise ValueError(f"Invalid clause in $filter: {ast.unparse(node)}")


def _clause(match: re.Match) -> dict:
    if match["area"]:
        return {"op": "s_intersects", "args": [{"property": "geometry"}, shapely.from_wkt(match["area"])]}
    if match["test"]:
        return {"op": match["test"], "args": [{"property": "Name"}, match["text"]]}
    field = {"property": match["field"]} if match["field"] else {"attribute": match["attribute"]}
    return {"op": match["sign"], "args": [field, match["value"].strip("'")]}


def _value(entry: Entry, term: Any) -> Any:
    """Value of a CQL2-JSON expression (OGC 21-065, Basic CQL2 with between, in and s_intersects) for one product."""
    if not isinstance(term, dict):
        return term
    if "property" in term:
        return entry.queryables[term["property"]]
    if "attribute" in term:
        return entry.attributes.get(term["attribute"])
    if "timestamp" in term:
        return _instant(term["timestamp"])
    if "type" in term:
        return shape(term)
    left, *right = (_value(entry, arg) for arg in term["args"])
    if left is None:  # a value that the product lacks meets no condition
        return False
    right = [_read_as(type(left), value) if isinstance(value, str) else value for value in right]
    return _OPERATIONS[term["op"]](left, *right)


def _instant(text: str) -> datetime:
    value = datetime.fromisoformat(text)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _read_as(kind: type, text: str) -> Any:
    """Converts the text of a query to the type of the value that it is compared with."""
    return _instant(text) if kind is datetime else kind(text)

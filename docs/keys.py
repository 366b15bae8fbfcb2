"""Writes the page of all configuration keys from the models: `.venv/bin/python docs/keys.py`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from cloudjob.config.models import Config

PAGE = Path(__file__).with_name("configuration.md")
LIMITS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
KINDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
KINDS |= {"object": "table", "date": "day", "path": "path"}
HEAD = """# Configuration reference

*Written from the code by `docs/keys.py`; a test holds that it is up to date.*

A configuration is a YAML file. Each command that takes `CONFIG` takes such a file, or a run folder, which holds its
own `config.yaml`. A key that you leave out has its default. [Your own region](region.md) is an example.

```sh
cloudjob config check configs/demo.yaml    # mistakes, with the nearest valid key
cloudjob config show configs/demo.yaml     # all values, and where each came from
cloudjob config schema > schema.json       # for an editor that completes YAML
```

A path in the file counts from the file's folder, one in `--set` from the working folder. `~` and `$VAR` are put in.
"""


def walk(schema: dict, at: dict, path: str = "") -> Iterator[tuple[str, dict]]:
    """(dotted name, object of the schema) of each section, sections that lie within after their own."""
    yield path, at
    for name, field in at["properties"].items():
        for within in objects(schema, field):
            several = "[]" if field.get("type") == "array" else ""
            yield from walk(schema, within, f"{path}.{name}".lstrip(".") + several)


def objects(schema: dict, field: dict) -> list[dict]:
    """The sections that a key holds."""
    parts = [field, field.get("items", {}), *field.get("anyOf", [])]
    return [schema["$defs"][part["$ref"].split("/")[-1]] for part in parts if "$ref" in part]


def admitted(field: dict) -> str:
    """The values that a key may have: words, or a type with its limits."""
    if "anyOf" in field or "oneOf" in field:
        parts = [admitted(part) for part in field.get("anyOf", field.get("oneOf")) if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in field or "const" in field:
        words = field.get("enum", [field.get("const")])
        return ", ".join(f"`{json.dumps(word).strip(chr(34))}`" for word in words)
    if "prefixItems" in field:
        return "two of: " + admitted(field["prefixItems"][0])
    if field["type"] == "array":
        return "list of: " + admitted(field["items"])
    limits = [f"{word} {field[key]:g}" for key, word in LIMITS.items() if key in field]
    return " ".join([KINDS.get(field.get("format", ""), KINDS[field["type"]]), *limits])


def default(name: str, at: dict) -> str:
    """The default as YAML has it."""
    if name in at.get("required", ()):
        return "*needed*"
    value = at["properties"][name].get("default")
    return "" if value is None else f"`{json.dumps(value).strip(chr(34))}`"


def sentence(text: str) -> str:
    """A description as a sentence that a cell of a table can hold."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")
    return (text if re.match(r"\S+:", text) else text[0].upper() + text[1:]).rstrip(".") + "."


def page() -> str:
    """The whole page."""
    schema = Config.model_json_schema()
    parts = [HEAD]
    for path, at in walk(schema, schema):
        keys = {name: field for name, field in at["properties"].items() if not objects(schema, field)}
        about = sentence(at["description"]) + "\n\n" if path else ""
        rows = [
            f"| `{name}` | {admitted(field)} | {default(name, at)} | {sentence(field['description'])} |"
            for name, field in keys.items()
        ]
        table = "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows]) + "\n" if rows else ""
        parts.append(f"## {path or 'At the top'}\n\n{about}{table}")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""What a value of YAML comes to: numbers where texts are meant, days, paths with ~ and $VAR."""

import itertools
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cloudjob.config import source
from cloudjob.config.fields import WRITTEN, ConfiguredPath, Day, Override, Text
from cloudjob.errors import ConfigError

HERE = {"folder": Path("/of/the/file"), "overrides": Path("/working")}
LINES = """search:
  polygon: [[-162.0, 68.5], [-162.0, 71.5], [-140.0, 71.5], [-162.0, 68.5]]
  clear: {start: 2024-03-01, end: 20240330, cloud: [0, 1]}
  cloudy: {start: 2024-02-01, end: 2024-04-30, cloud: [5, 50]}
"""


def loaded(folder: Path, *lines: str):
    (folder / "a.yaml").write_text(LINES + "\n".join(lines))
    return source.load(folder / "a.yaml")[0]


@given(st.from_regex(r"\A[-+]?[0-9_.eE]{1,12}\Z"))
def test_a_text_that_yaml_takes_for_a_number_stays_as_it_is_written(text):
    read = source.yaml.load(f"[{text}]", Loader=source._Loader)[0]
    assert TypeAdapter(Text).validate_python(read) == text


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-4", 1e-4), ("4.0e-4", 4e-4), (".5", 0.5), ("-3", -3), ("010", 10), ("600_000", 600000), ("1e6", 10**6)],
)
def test_numbers_are_those_that_one_means(written, value):
    read = source.yaml.load(written, Loader=source._Loader)
    assert TypeAdapter(float).validate_python(read) == value
    if value == int(value):
        assert type(TypeAdapter(int).validate_python(read)) is int


def test_what_looks_like_a_number_may_name_a_folder_or_a_width(tmp_path):
    found = loaded(tmp_path, "train: {local_dir: 007, average: 0.10, init_from: 2024_03}", "infer: {checkpoint: 0.10}")
    assert (found.train.local_dir, found.train.average) == ("007", "0.10")
    assert (found.train.init_from, found.infer.checkpoint) == (tmp_path / "2024_03", tmp_path / "0.10")
    assert found.search.clear.end == date(2024, 3, 30)
    with pytest.raises(ConfigError, match=r"a\.yaml:5  train\.local_dir = False: .*write it in quotes"):
        loaded(tmp_path, "train: {local_dir: no}")


def test_a_day_may_be_written_without_dashes_and_is_no_count_of_seconds():
    for text in ("20240301", "2024-03-01"):
        assert TypeAdapter(Day).validate_python(source.yaml.load(text, Loader=source._Loader)) == date(2024, 3, 1)
    for wrong in (86400, 0, "2024", True):
        with pytest.raises(ValidationError):
            TypeAdapter(Day).validate_python(wrong)


def test_home_and_variables_are_put_in_wherever_a_path_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    keys = ("archive.path", "train.init_from", "infer.checkpoint", "masks.folder")
    for key, (written, meant) in itertools.product(keys, {"~/x": "/home/me/x", "${DATA}/$DATA": "/data/data"}.items()):
        given = [f"{key}={written}", *(["masks.source=raster"] if key == "masks.folder" else [])]
        (tmp_path / "a.yaml").write_text(LINES)
        section, name = key.split(".")
        assert getattr(getattr(source.load(tmp_path / "a.yaml", given)[0], section), name) == Path(
            meant.replace("//", "/")
        )


def test_a_variable_that_is_not_set_is_named_with_its_key(tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ConfigError, match=r"a\.yaml:5  archive\.path = \$NOWHERE/a: \$NOWHERE is not set"):
        loaded(tmp_path, "archive: {path: $NOWHERE/a}")
    with pytest.raises(ConfigError, match=r"infer\.checkpoint = \$\{EMPTY\}/a: \$EMPTY is empty"):
        loaded(tmp_path, "infer: {checkpoint: '${EMPTY}/a'}")
    with pytest.raises(ConfigError, match=r"~nobody-here is nobody's home folder"):
        loaded(tmp_path, "infer: {checkpoint: ~nobody-here/a}")


@given(st.text("a$~{}é #", min_size=1).map(lambda name: f"/a/{name}"))
def test_a_path_is_written_so_that_it_is_read_again(name):
    kind = TypeAdapter(ConfiguredPath)
    path = Path(name).resolve()
    assert kind.validate_python(kind.dump_python(path, mode="json", context=WRITTEN), context=HERE) == path
    assert kind.dump_python(path, mode="json") == str(path)  # as the records have it


def test_a_path_counts_from_its_folder():
    kind = TypeAdapter(ConfiguredPath)
    assert kind.validate_python("a", context=HERE) == Path("/of/the/file/a")
    assert kind.validate_python(Override("a"), context=HERE) == Path("/working/a")

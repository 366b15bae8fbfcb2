"""The comparison file: what its variants come to, and every mistake in it."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cloudjob.comparison import variants
from cloudjob.config import source
from cloudjob.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BASE = CONFIGS / "test.yaml"


def load(folder: Path, given: dict, **keys) -> variants.Comparison:
    path = folder / "comparison.yaml"
    path.write_text(yaml.safe_dump({"base": str(BASE), "variants": given} | keys, sort_keys=False))
    return variants.load(path)


def mistakes(folder: Path, given, **keys) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, given, **keys)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", ["comparison", "comparison-gpu", "ablation"])
def test_the_shipped_comparisons_are_good(name):
    assert {"ours", "regression"} <= set(variants.load(CONFIGS / f"{name}.yaml").variants)


def test_a_public_data_set_is_no_base(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("public: {kind: allclear, folder: .}\nevaluate: {of: triplets}\n")
    assert "not compared" in mistakes(tmp_path, {"ours": None}, base=str(base))[0]


@pytest.mark.parametrize("name", ["real", "real-l1c"])
def test_the_real_benchmark_needs_no_training(monkeypatch, name):
    monkeypatch.setenv("CLOUDJOB_REAL", "/series")
    (fills,) = variants.load(CONFIGS / f"{name}.yaml").variants.values()
    assert (fills.config.evaluate.of, fills.config.evaluate.members) == ("triplets", 0)
    assert fills.config.shard.split.test_tiles == [place.tile for place in fills.config.archive.series]


def test_at_20_m_each_place_is_tested_by_what_the_other_trains(monkeypatch):
    monkeypatch.setenv("CLOUDJOB_REAL", "/series")
    found = variants.load(CONFIGS / "real-20m.yaml").variants
    assert set(found) == {f"{rows}-{tile}" for rows in ("fills", "ours") for tile in ("31UDS", "31UES")}
    for name, variant in found.items():
        rows, tile = name.split("-")
        split = variant.config.shard.split
        assert (split.test_tiles, split.test_share, split.val_share) == ([tile], 0, 0)
        assert (variant.config.evaluate.members > 0) == (rows == "ours")
        folders = {str(place.folder) for place in variant.config.archive.series}
        assert folders == {"/series/20m/31UDS", "/series/20m/31UES"}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            ("train", "lr"): st.floats(1e-6, 1),
            ("train", "batch_size"): st.integers(1, 512),
            ("infer", "steps"): st.integers(1, 1000),
            ("shard", "cloud"): st.tuples(st.floats(0, 0.4), st.floats(0.5, 1)).map(list),
        },
    )
)
def test_dotted_and_nested_overrides_are_what_the_variant_gets_and_nothing_else_changes(tmp_path_factory, chosen):
    nested: dict = {}
    for (section, key), value in chosen.items():
        nested.setdefault(section, {})[key] = value
    dotted = {".".join(key): value for key, value in chosen.items()}
    found = load(tmp_path_factory.mktemp("comparison"), {"nested": nested, "dotted": dotted}).variants
    expected = source.load(BASE)[0].model_dump(mode="json")
    for (section, key), value in chosen.items():
        expected[section][key] = value
    assert found["nested"].config.model_dump(mode="json") == expected
    assert found["dotted"].config == found["nested"].config


def test_a_variant_from_another_takes_its_overrides_and_adds_its_own(tmp_path):
    chain = {
        "c": {"from": "b", "infer.members": 3},
        "b": {"from": "a", "infer": {"steps": 7, "members": 2}},
        "a": {"train.lr": 0.5},
    }
    found = load(tmp_path, chain).variants
    assert list(found) == ["c", "b", "a"]
    assert [found[name].source for name in "abc"] == [None, "a", "a"]
    settings = [(v.config.train.lr, v.config.infer.steps, v.config.infer.members) for v in map(found.get, "abc")]
    assert settings == [(0.5, 2, 1), (0.5, 7, 2), (0.5, 7, 3)]


def test_a_variant_like_another_is_that_but_for_its_own_network_and_time(tmp_path):
    given = {
        "ours": {},
        "rival": {"train.lr": 0.5, "infer.steps": 7},
        "timed": {"like": "rival", "as_long_as": "ours", "infer.steps": 8},
        "fast": {"from": "timed", "infer.steps": 1},
    }
    found = load(tmp_path, given).variants
    timed, fast = found["timed"], found["fast"]
    assert (timed.source, timed.like, timed.as_long_as, timed.needs) == (None, "rival", "ours", ["rival", "ours"])
    assert (fast.source, fast.like, fast.needs) == ("timed", None, ["timed"])
    assert [(v.config.train.lr, v.config.infer.steps) for v in (timed, fast)] == [(0.5, 8), (0.5, 1)]


def test_a_name_may_be_a_number_and_a_null_names_nobody(tmp_path):
    given = {2025: {"from": None}, "ours": {"like": None}, "timed": {"like": 2025, "as_long_as": "ours"}}
    found = load(tmp_path, given).variants
    assert [found[name].needs for name in ("2025", "ours", "timed")] == [[], [], ["2025", "ours"]]


def test_the_budget_comes_before_what_a_variant_says(tmp_path, monkeypatch):
    seen = []
    real = source.load

    def note(path, overrides=(), **others):
        seen.append(list(overrides))
        return real(path, overrides, **others)

    monkeypatch.setattr(source, "load", note)
    found = load(tmp_path, {"ours": {}, "longer": {"train.lr": 0.5}}, samples=20000)
    assert found.variants["ours"].overrides == ["train.samples=20000"]
    assert seen == [["train.samples=20000"], ["train.samples=20000"], ["train.samples=20000", "train.lr=0.5"]]


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"a": {"train.presset": "tiny"}}, "a", "train.presset: unknown key; did you mean preset?"),
        ({"a": {"masks.cloud_m": -1}}, "a", "masks.cloud_m = -1: "),
        ({"a": {"pair": {"max_days": 3}}}, "a", "pair.max_days: all variants share what pair makes"),
        ({"a": {"from": "ourz"}, "ours": {}}, "a", "from = ourz: no such variant; did you mean ours?"),
        ({"a": {"from": "a"}}, "a", "from = a: the variants take their network from each other"),
        ({"a": {"from": "b"}, "b": {"from": "a"}}, "a", "from = b: the variants take their network from each other"),
        ({"a": {}, "b": {"from": "a", "train.lr": 1}}, "b", "train.lr: the network of a is taken as it is"),
        ({"a": {"like": "b"}, "b": {}}, "a", "like and as_long_as belong together"),
        ({"a": {"as_long_as": "b"}, "b": {}}, "a", "like and as_long_as belong together"),
        ({"a": {"like": "b", "as_long_as": "b", "from": "b"}, "b": {}}, "a", "like and as_long_as belong together"),
        ({"a": {"like": "b", "as_long_as": "cc"}, "b": {}}, "a", "as_long_as = cc: no such variant"),
        ({"a": {"like": "a", "as_long_as": "b"}, "b": {}}, "a", "like = a: the variants are like each other"),
        ({"a": {"like": "b", "as_long_as": "b", "train.samples": 8}, "b": {}}, "a", "train.samples: follows from"),
        ({"a": {"like": "b", "as_long_as": "c"}, "b": {}, "c": {"from": "b"}}, "a", "as_long_as = c: name a variant"),
        ({"a": {"like": "b", "as_long_as": "b"}, "b": 3}, "b", "write keys and values"),
        ({"a": 3}, "a", "write keys and values"),
        ({"../a": {}}, "../a", "the name of a folder"),
        ({"base": {}}, "base", "neither base nor records"),
    ],
)
def test_mistakes_of_variants_are_named(tmp_path, given, key, words):
    line = mistakes(tmp_path, given)[0]
    assert line.startswith(f"{tmp_path / 'comparison.yaml'}:")
    assert f"  variants.{key}: " in line
    assert words in line


def test_no_variants_are_a_mistake(tmp_path):
    (line,) = mistakes(tmp_path, {})
    assert "variants: name at least one" in line


def test_what_is_common_goes_to_the_base_and_to_all_and_before_what_a_variant_says(tmp_path):
    given = {"ours": {}, "tiny": {"train.preset": "tiny"}}
    found = load(tmp_path, given, common={"archive.synthetic.size": 1024, "train": {"preset": "base"}})
    assert found.common == ["archive.synthetic.size=1024", 'train.preset="base"']
    assert found.config.archive.synthetic.size == 1024
    assert [variant.config.train.preset for variant in found.variants.values()] == ["base", "tiny"]
    (said,) = mistakes(tmp_path, given, common=["train.lr"])
    assert "common: write keys and values of the base" in said


def test_a_path_counts_from_the_comparison_file_wherever_its_children_work(tmp_path, monkeypatch):
    given = {
        "ours": {"train.init_from": "nets/a.pt", "masks": {"source": "raster", "folder": "../masks"}},
        "given": {"infer.checkpoint": "/abs.pt", "train.init_from": "nets/b.pt"},
    }
    monkeypatch.chdir("/")
    found = load(tmp_path, given, common={"archive.path": "products", "train": {"init_from": "nets/0.pt"}})
    assert found.config.archive.path == tmp_path / "products"
    assert found.common == [f'archive.path="{tmp_path}/products"', f'train.init_from="{tmp_path}/nets/0.pt"']
    ours, other = found.variants["ours"], found.variants["given"]
    assert ours.config.train.init_from == tmp_path / "nets/a.pt"
    assert ours.overrides == [
        found.common[0],
        f'train.init_from="{tmp_path}/nets/a.pt"',
        'masks.source="raster"',
        f'masks.folder="{tmp_path.parent}/masks"',
    ]
    for variant in (ours, other):  # as a child is given them
        assert source.load(BASE, variant.overrides)[0] == variant.config
    assert other.config.infer.checkpoint == Path("/abs.pt")


def test_all_mistakes_of_the_file_are_told_at_once_with_their_lines(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("bases: x\nsamples: 0\nvariants:\n  a: {}\n  b:\n    from: c\n")
    with pytest.raises(ConfigError) as caught:
        variants.load(path)
    said = str(caught.value).splitlines()
    assert [line.split(":")[1].split()[0] for line in said] == ["1", "1", "2", "5"]
    assert "did you mean base?" in said[0]


def test_choosing_by_name_and_by_index(tmp_path):
    comparison = load(tmp_path, {"ours": {}, "other": {"from": "ours"}})
    assert comparison.choose([], None) == []
    assert comparison.choose([], 1) == ["other"]
    assert comparison.choose(["base", "ours"], None) == ["base", "ours"]
    with pytest.raises(ConfigError, match="there are 2 variants, 0 to 1"):
        comparison.choose([], 2)
    with pytest.raises(ConfigError) as caught:
        comparison.choose(["our", "x"], None)
    assert str(caught.value).splitlines() == [
        "--only our: no such variant; did you mean ours?",
        "--only x: no such variant; there are ours, other, base",
    ]


def test_values_reach_the_variant_as_they_are_written(tmp_path):
    """A folder called 0.10 and a dollar sign, also when a child process reads them."""
    path = tmp_path / "comparison.yaml"
    path.write_text(f"base: {BASE}\nvariants:\n  ours: {{train.local_dir: 0.10, infer.checkpoint: $$x.pt}}\n")
    ours = variants.load(path).variants["ours"]
    assert (ours.config.train.local_dir, ours.config.infer.checkpoint) == ("0.10", tmp_path / "$x.pt")
    assert source.load(BASE, ours.overrides)[0] == ours.config

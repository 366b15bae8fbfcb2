"""The run folder: names of files, and what is said where one is not there yet."""

import shlex

import pytest

from cloudjob.errors import InputError
from cloudjob.files import write_json, write_jsonl, write_text
from cloudjob.run.folder import RunFolder


def test_names_of_files_are_those_that_the_readme_promises(tmp_path):
    folder, product = RunFolder(tmp_path), "S2A"
    names = {
        "scenes.jsonl": folder.scenes,
        "scenes/S2A.SAFE": folder.safe(product),
        "pairs.jsonl": folder.pairs,
        "review/index.html": folder.review_page,
        "review/decisions.csv": folder.decisions,
        "shards/val-00003.h5": folder.shard("val", 3),
        "shards/index.json": folder.shard_index,
        "train/checkpoints": folder.checkpoints,
        "train/metrics.jsonl": folder.metrics,
        "train/validation.jsonl": folder.validation,
        "train/checks.jsonl": folder.checks,
        "outputs/S2A/S2A.json": folder.output(product, ".json"),
        "truth/S2A.tif": folder.truth(product),
        "evaluation/scores.jsonl": folder.scores,
        "evaluation/summary.json": folder.evaluation,
        "evaluation/S2A.png": folder.evaluation_picture(product),
        "report/index.html": folder.report,
        "jobs/log.tsv": folder.jobs,
        "jobs/history.jsonl": folder.history,
        "config.yaml": folder.config,
    }
    assert {str(path.relative_to(tmp_path)) for path in names.values()} == set(names)
    assert all(path == tmp_path / name for name, path in names.items())


def test_a_file_that_is_not_there_yet_is_named_with_the_stage_that_makes_it(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(InputError, match=rf"scenes\.jsonl is not there yet\. Run: cloudjob search {tmp_path}"):
        folder.rows(folder.scenes, stage="search")
    with pytest.raises(InputError, match=r"index\.json is not there yet\. Run: cloudjob shard"):
        folder.index()
    write_jsonl(folder.scenes, [{"product": "a"}, {"product": "ä"}])
    write_json(folder.shard_index, {"window": 64})
    assert folder.rows(folder.scenes, stage="search") == [{"product": "a"}, {"product": "ä"}]
    assert folder.index() == {"window": 64}


def test_only_a_file_of_the_run_is_set_aside(tmp_path):
    folder, foreign = RunFolder(tmp_path / "run"), tmp_path / "model.pt"
    for path in (folder.root / "scenes/band.jp2", foreign):
        write_text(path, "broken")
    assert folder.set_aside(folder.root / "scenes/band.jp2")
    assert (folder.root / "scenes/band.jp2.corrupt").read_text() == "broken"
    assert not (folder.root / "scenes/band.jp2").exists()
    assert not folder.set_aside(folder.root / "scenes/band.jp2")  # gone already
    assert not folder.set_aside(folder.root / "../model.pt")
    assert not folder.set_aside(folder.root / "scenes")
    assert foreign.exists()


def test_a_command_that_is_told_can_be_pasted_into_a_shell(tmp_path):
    folder = RunFolder(tmp_path / "exp [1]")
    with pytest.raises(InputError) as caught:
        folder.index()
    assert shlex.split(str(caught.value).partition("Run: ")[2]) == ["cloudjob", "shard", str(folder.root)]

"""The run folder: names of files, and what is said where one is not there yet."""

import errno
import os
import shlex
from pathlib import Path

import pytest

from cloudjob.errors import DamagedInputError, InputError
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


def test_the_run_folder_and_those_in_it_may_be_links(tmp_path, monkeypatch):
    scratch, shared = tmp_path / "scratch", tmp_path / "shared"
    for place in (scratch / "scenes" / "a.SAFE", shared / "b.SAFE"):
        write_text(place / "band.jp2", "broken")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "scenes").symlink_to(scratch / "scenes")
    (tmp_path / "run").symlink_to("real")
    (scratch / "scenes" / "b.SAFE").symlink_to(shared / "b.SAFE")
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "run", Path("run"), Path("real")):
        folder = RunFolder(root)
        assert folder.set_aside(folder.safe("a") / "band.jp2"), root
        write_text(folder.safe("a") / "band.jp2", "broken")
        assert not folder.set_aside(folder.safe("b") / "band.jp2"), "another's product"
    assert (scratch / "scenes" / "a.SAFE" / "band.jp2.corrupt").exists()


def test_where_the_system_refuses_a_broken_file_stays(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    write_text(folder.scenes, "broken")

    def refuse(*names):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert not folder.set_aside(folder.scenes)
    assert folder.scenes.exists()


def test_a_damaged_file_is_named_with_line_and_command(tmp_path):
    folder, said = RunFolder(tmp_path), []
    folder.say = said.append
    folder.pairs.write_text('{"pair": "a"}\n{"pair": ')
    with pytest.raises(DamagedInputError, match=rf"pairs\.jsonl: line 2 .* cloudjob pair {tmp_path}"):
        folder.rows(folder.pairs, stage="pair")
    folder.shard_index.parent.mkdir()
    folder.shard_index.write_text("{")
    with pytest.raises(DamagedInputError, match=rf"index\.json: is not JSON .* cloudjob shard {tmp_path}"):
        folder.index()
    assert folder.whole_rows(folder.metrics, stage="train") == []
    assert not said
    assert folder.whole_rows(folder.pairs, stage="pair") == [{"pair": "a"}]
    assert said == [f"{folder.pairs}:2  cannot be read and is left out (lines: 2); cloudjob pair {tmp_path}"]


def test_a_command_that_is_told_can_be_pasted_into_a_shell(tmp_path):
    folder = RunFolder(tmp_path / "exp [1]")
    with pytest.raises(InputError) as caught:
        folder.index()
    assert shlex.split(str(caught.value).partition("Run: ")[2]) == ["cloudjob", "shard", str(folder.root)]

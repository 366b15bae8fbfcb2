"""What CONFIG, --run-dir, --set and --init-from come to."""

import errno
import json
import tempfile
from pathlib import Path

import pytest

from cloudjob.cli.context import check_writable, open_run, stage_module
from cloudjob.cli.parser import STAGES, parse
from cloudjob.errors import ConfigError
from cloudjob.run.folder import RunFolder

TEST = Path(__file__).resolve().parents[2] / "configs" / "test.yaml"


def opened(*arguments):
    return open_run(parse(list(map(str, arguments))))


def test_a_file_has_its_run_folder_below_runs_or_where_it_is_told():
    assert opened("plan", TEST).folder.root == Path("runs/test")
    assert opened("plan", TEST, "--run-dir", "/elsewhere").folder.root == Path("/elsewhere")


def test_a_run_folder_brings_its_own_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text(TEST.read_text())
    found = opened("train", tmp_path, "--only", "run", "--force", "--set", "seed=7")
    assert (found.folder.root, found.folder.only, found.folder.force) == (tmp_path, ["run"], True)
    assert found.config.seed == 7
    assert found.source.where(("seed",)) == "--set seed=7"
    assert opened("plan", tmp_path, "--run-dir", tmp_path / "." / "").folder.root == tmp_path
    with pytest.raises(ConfigError, match="is a run folder itself: leave out --run-dir elsewhere"):
        opened("plan", tmp_path, "--run-dir", "elsewhere")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file or run folder"):
        opened("plan", tmp_path / "none.yaml")


def test_a_file_in_the_place_of_a_run_folder_is_named_and_a_folder_that_refuses_is_too(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file is a file, not a run folder"):
        opened("plan", TEST, "--run-dir", tmp_path / "file")
    for root in (tmp_path / "file" / "run", Path("/proc/cloudjob")):
        with pytest.raises(
            ConfigError, match=rf"{root} cannot be written to \(.*\): name a folder elsewhere with --run-dir"
        ):
            check_writable(RunFolder(root))
    check_writable(RunFolder(tmp_path / "new" / "run"))
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_without_a_temporary_folder_there_is_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    opened("plan", TEST, "--run-dir", tmp_path / "run")
    assert tempfile.gettempdir() == str(tmp_path / "run")


def test_a_full_disk_is_no_mistake_in_the_command(tmp_path, monkeypatch):
    def full(**options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space"):
        check_writable(RunFolder(tmp_path))


def test_paths_on_the_command_line_count_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = opened("train", TEST, "--init-from", "a, 'b'.pt", "--set", "infer.checkpoint=../c.pt").config
    assert found.train.init_from == tmp_path / "a, 'b'.pt"
    assert found.infer.checkpoint == tmp_path.parent / "c.pt"
    assert opened("train", TEST, "--init-from", "/abs.pt").config.train.init_from == Path("/abs.pt")
    (tmp_path / "~$x.pt").touch()
    assert opened("train", TEST, "--init-from", "~$x.pt").config.train.init_from == tmp_path / "~$x.pt"
    json.dumps(found.section("train", "infer"))  # plain values


def test_every_stage_has_its_module_by_its_own_name():
    for stage in STAGES:
        assert stage == stage_module(stage).STAGE

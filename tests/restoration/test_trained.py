"""Which checkpoint a path means."""

import pytest

from cloudjob.errors import ConfigError
from cloudjob.restoration.trained import checkpoint_at


def test_a_file_is_meant_or_the_newest_of_a_folder(tmp_path):
    folder = tmp_path / "run" / "train" / "checkpoints"
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        checkpoint_at(tmp_path / "run")
    older, newer = (folder / f"step-{seen:08d}.pt" for seen in (8, 16))
    for path in (older, newer):
        path.touch()
    assert checkpoint_at(older) == older
    for place in (tmp_path / "run", tmp_path / "run" / "train", folder):
        assert checkpoint_at(place).resolve() == newer
    with pytest.raises(ConfigError, match=r"no\.pt: no such file or folder"):
        checkpoint_at(tmp_path / "no.pt")

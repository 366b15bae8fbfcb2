import pytest

from cloudjob.errors import ConfigError
from cloudjob.hpc import launch


def test_a_lonely_rank_is_noticed(monkeypatch):
    monkeypatch.setenv("CLOUDJOB_RANKS", "4")
    launch.check_ranks(4)
    with pytest.raises(ConfigError, match=r"started 4 ranks, and this one sees 1.*SITE_MPI"):
        launch.check_ranks(1)
    monkeypatch.delenv("CLOUDJOB_RANKS")
    launch.check_ranks(1)


def test_a_gpu_that_torch_does_not_see_is_noticed(monkeypatch):
    monkeypatch.delenv("CLOUDJOB_ON_CPU", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    launch.check_gpu(True)
    with pytest.raises(ConfigError, match=r"CUDA_VISIBLE_DEVICES=0,1.*--nv"):
        launch.check_gpu(False)
    monkeypatch.setenv("CLOUDJOB_ON_CPU", "1")
    launch.check_gpu(False)

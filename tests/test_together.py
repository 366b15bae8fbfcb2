"""Several processes on one run folder at once: they share the work, and what comes out is as of one alone."""

import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forked import Forked
from front_door import CLOUDJOB, CONFIG, STAGES, call, clean_message, copied, forget, good, same
from small_runs import Ranks, last_seen, weights, workspace

from cloudjob.training import logs

pytestmark = pytest.mark.slow


class Worker:
    """A `cloudjob` in the background; what it says goes to a file."""

    def __init__(self, said: Path, *arguments):
        self.said = said
        with open(said, "a") as file:
            self.process = Forked([*CLOUDJOB, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=file)

    def text(self) -> str:
        return self.said.read_text()

    def end(self, seconds: float = 300) -> int:
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()


def left(run: Path) -> list[Path]:
    """Lease files, and temporary ones."""
    found = [*(run / "leases").rglob("*"), *run.rglob(".tmp-*"), *run.rglob(".work-*")]
    return [path for path in found if path.is_file()]


def counted(workers: list[Worker], stage: str, what: str) -> int:
    """How many items of a stage the workers say they made, or found made, together."""
    found = [re.search(rf"^{stage}: .*?(\d+) {what}, ", worker.text(), re.MULTILINE) for worker in workers]
    return sum(int(match[1]) for match in found)


def test_two_runs_share_what_is_missing(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    forget(run, "pair", "review", "shard", "infer", "report")
    workers = [Worker(tmp_path / f"said-{number}", "run", run) for number in range(2)]
    assert [worker.end() for worker in workers] == [0, 0], [worker.text() for worker in workers]
    for stage in ("pair", "review", "shard", "infer"):
        assert counted(workers, stage, "done") == 3, [worker.text() for worker in workers]
    same(finished, run)
    assert left(run) == []


def test_two_tasks_of_an_array_on_one_scene_make_it_once(finished, tmp_path):
    run = copied(finished, tmp_path / "run", until="train")
    workers = [Worker(tmp_path / f"said-{number}", "infer", run, "--index", 1) for number in range(2)]
    assert [worker.end() for worker in workers] == [0, 0], [worker.text() for worker in workers]
    assert (counted(workers, "infer", "done"), counted(workers, "infer", "skipped")) == (1, 1)
    assert sum("waits: infer S2" in worker.text() for worker in workers) == 1
    good("run", run)
    same(finished, run)


SHORT = ("train.epochs=6", "train.process=regression", "train.log_s=0.001", "train.checkpoint_s=0.1")  # 12 steps


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> bytes:
    """The weights of a training that nobody disturbed."""
    space = workspace(tmp_path_factory.mktemp("plain") / "run")
    with Ranks(space, 1, *SHORT) as ranks:
        assert ranks.wait() == [0], ranks.text()
    return weights(space)


def test_a_second_training_waits_for_the_first_and_takes_it_over_where_that_is_killed(plain, tmp_path):
    space = workspace(tmp_path / "run")
    with Ranks(space, 1, *SHORT) as first:
        first.until(lambda: last_seen(space) > 24)
        first.signal(signal.SIGSTOP)
        with Ranks(space, 1, *SHORT) as second, Ranks(space, 1, *SHORT) as third:
            waits = f"waits: train run is being made by process {first.processes[0].pid} on"
            for others in (second, third):
                others.until(lambda others=others: waits in others.text())
            third.signal(signal.SIGTERM)
            assert third.wait(30) == [75], third.text()
            assert "stopped while waiting: train run" in third.text()
            first.signal(signal.SIGKILL)
            assert second.wait() == [0], second.text()
            assert "goes on from step-" in second.text()
    assert weights(space) == plain


def test_with_several_ranks_the_first_waits_and_the_others_hear_from_it(tmp_path):
    space = workspace(tmp_path / "run")
    with Ranks(space, 2, *SHORT) as first:
        first.until(lambda: last_seen(space) > 8)
        first.signal(signal.SIGSTOP)
        with Ranks(space, 2, *SHORT) as second, Ranks(space, 2, *SHORT) as third:
            for others in (second, third):
                others.until(lambda others=others: "waits: train run" in others.text())
            third.signal(signal.SIGTERM)
            assert third.wait(30) == [75, 75], third.text()
            first.signal(signal.SIGCONT)
            assert first.wait() + second.wait() == [0] * 4, first.text() + second.text()
            assert second.text().count("0 done, 1 skipped") == 1, second.text()


def test_a_training_that_was_suspended_too_long_drops_its_work(plain, tmp_path):
    space, hurried = workspace(tmp_path / "run"), (*SHORT, "leases.patience=1")
    with Ranks(space, 1, *hurried) as first:
        first.until(lambda: last_seen(space) > 24)
        first.signal(signal.SIGSTOP)
        with Ranks(space, 1, *hurried) as second:
            second.until(lambda: "goes on from step-" in second.text())
            first.signal(signal.SIGCONT)
            assert first.wait() == [75], first.text()
            assert "took it over" in first.text()
            assert second.wait() == [0], second.text()
    assert weights(space) == plain
    seen = [row["seen"] for row in logs.rows(space.metrics)]
    assert seen == sorted(set(seen))


def test_killed_at_random_while_two_work_it_ends_as_of_one_that_nobody_disturbed(finished, tmp_path):
    random_kills(finished, tmp_path, kills=20)


@pytest.mark.long
def test_killed_at_random_a_hundred_times(finished, tmp_path):
    random_kills(finished, tmp_path, kills=100)


def random_kills(finished: Path, folder: Path, *, kills: int) -> None:
    """Two workers; one after the other is killed at a random moment and replaced, until all stages are done and often
    enough: then what is done is forgotten from a random stage on."""
    chance, run = random.Random(kills), folder / "run"
    command = ("run", CONFIG, "--run-dir", run, "--set", "leases.patience=2")
    workers = [Worker(folder / f"said-{number}", *command) for number in range(2)]
    for _ in range(kills):
        time.sleep(chance.uniform(0.1, 3.5))
        number = chance.randrange(2)
        workers[number].process.kill()
        assert workers[number].process.wait() in (-signal.SIGKILL, 0), workers[number].text()
        if all(worker.process.poll() == 0 for worker in workers):
            forget(run, *STAGES[STAGES.index(chance.choice(("shard", "infer", "evaluate"))) :])
        workers[number] = Worker(folder / f"said-{number}", *command)
    assert [worker.end() for worker in workers] == [0, 0], [worker.text() for worker in workers]
    assert not any("Traceback" in worker.text() for worker in workers)
    good("run", run)
    same(finished, run)
    assert left(run) == []


def test_a_stop_file_that_nobody_is_left_to_obey_is_removed_and_one_that_somebody_is_stays(finished, tmp_path):
    run = copied(finished, tmp_path / "run", until="train")
    (run / "STOP").touch()
    done = good("infer", run, "--index", 0)
    assert "STOP was left over (0 minutes old)" in done.stderr
    assert not (run / "STOP").exists()
    worker = Worker(tmp_path / "said", "infer", run, "--set", "infer.steps=200")
    while not list((run / "leases" / "infer").glob("*/*")):
        assert worker.process.poll() is None, worker.text()
        time.sleep(0.01)
    worker.process.send_signal(signal.SIGSTOP)
    (run / "STOP").touch()
    clean_message(call("infer", run), 75, "STOP", f"process {worker.process.pid} on", "makes infer", "remove that file")
    assert (run / "STOP").exists()
    worker.process.send_signal(signal.SIGCONT)
    assert worker.end() == 75
    assert left(run / "leases") == []

"""The image itself: what it says of itself, that its %test can fail, and that it needs no rights to run."""

import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT


def inspect(image: Path) -> dict[str, str]:
    lines = subprocess.run(["apptainer", "inspect", image], check=True, capture_output=True, text=True).stdout
    return dict(line.split(": ", 1) for line in lines.splitlines() if ": " in line)


def test_the_image_shows_the_packages_of_the_lock(image):
    labels = inspect(image)
    lock = [line.split(" ")[0] for line in (ROOT / "containers" / "cpu.lock").read_text().splitlines()[1:]]
    packages = labels["cloudjob.packages"].split()
    print(f"{image.stat().st_size / 2**20:.0f} MiB, {len(packages)} packages:", *packages)
    assert {line.lower() for line in packages if not line.startswith("pip==")} == set(lock)
    assert labels["cloudjob.lock"] == "cpu"
    command = ["apptainer", "run", image, "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    version, commit = labels["org.opencontainers.image.version"], labels["org.opencontainers.image.revision"]
    assert said == ["cloudjob", version, f"({commit})"]
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_what_runs_is_the_image_and_not_what_the_user_has_loaded(image, tmp_path):
    (tmp_path / "cloudjob.py").write_text("raise SystemExit('the wrong one')")
    program = "import cloudjob; print(cloudjob.__file__)"
    command = ["apptainer", "exec", "--bind", tmp_path, "--pwd", tmp_path, image, "python", "-c", program]
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("/opt/venv/"), done.stderr


def broken(source: Path) -> str:
    """A catalogue in the wrong order, which the first tests see."""
    text = source.read_text()
    assert text.count('rule.get("direction") == "desc"') == 1
    return text.replace('rule.get("direction") == "desc"', 'rule.get("direction") != "desc"')


def test_a_broken_package_fails_the_test_of_the_image(image, tmp_path):
    """What `apptainer build` runs last, with one file of the image replaced."""
    (tmp_path / "queries.py").write_text(broken(ROOT / "cloudjob" / "archive" / "queries.py"))
    command = ["apptainer", "exec", image, "python", "-c", "import cloudjob.archive.queries as m; print(m.__file__)"]
    inside = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    command = ["apptainer", "test", "--bind", f"{tmp_path / 'queries.py'}:{inside}", image]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "1 failed" in done.stdout, done.stdout + done.stderr


@pytest.mark.long
def test_a_broken_package_fails_the_build(build, image, tmp_path):
    """Built upon the image itself, so that only the package is installed anew."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "build", "runs"), symlinks=True)
    source = folder / "cloudjob" / "archive" / "queries.py"
    source.write_text(broken(source))
    done = build(tmp_path / "broken.sif", image, folder)
    assert done.returncode != 0
    assert "failed to execute %test" in done.stdout + done.stderr
    assert not (tmp_path / "broken.sif").exists()


def test_a_user_without_rights_runs_the_chain_with_one_folder_bound(image, tmp_path):
    """As nobody, root read-only, no home, nothing of the machine but the run folder. Its training is compiled."""
    run = tmp_path / "run"
    run.mkdir()
    for folder in (run, *run.parents[:3]):
        os.chmod(folder, 0o777 if folder == run else folder.stat().st_mode | 0o055)
    shutil.copy(ROOT / "configs" / "test.yaml", run / "test.yaml")
    visible = Path("/var/tmp") / f"cloudjob-test-{os.getpid()}"  # nobody may not look into the folder of the image
    visible.mkdir(mode=0o777)
    visible.chmod(0o777)
    try:
        shutil.copy(image, visible / "cloudjob.sif")
        env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}
        env |= {"APPTAINER_TMPDIR": str(visible), "APPTAINER_CACHEDIR": str(visible)}
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        command += ["apptainer", "exec", "--unsquash", "--containall", "--bind", f"{run}:/job"]
        command += [visible / "cloudjob.sif", "sh", "-c"]
        script = "touch /opt/x 2>/dev/null && exit 9; id -u; cloudjob run /job/test.yaml --run-dir /job/test"
        script += " --set train.samples=16 --set train.compile=true"
        done = subprocess.run([*command, script], env=env, capture_output=True, text=True, timeout=1800, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("65534")
        assert (run / "test" / "report" / "index.html").stat().st_uid == 65534
        cards = [json.loads(line) for line in (run / "test" / "train" / "jobs.jsonl").read_text().splitlines()]
        assert [card["compiled"] for card in cards if card["event"] == "start"] == [True]  # it has a compiler
        assert [card for card in cards if card["event"] == "not compiled"] == []
    finally:
        shutil.rmtree(visible)

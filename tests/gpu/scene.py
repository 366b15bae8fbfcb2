"""What a large scene takes, from products to files."""

import json
import os
import pstats
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from findings import Findings
from machine import CLOUDJOB, CPU, OUT, ROOT, WORK

SIZE = int(os.environ.get("SCENE", 720 if CPU else 5490))  # pixels at its edge, a multiple of 18
TILE, CLEAR, CLOUDY = "05WPS", ("2024-03-02", "2024-03-22"), "2024-03-08"
ARCHIVE, FOLDER = WORK / "scene-archive", WORK / "scene"
OURS = str(ROOT / "cloudjob") + "/"


def _config() -> Path:
    path = WORK / "scene.yaml"
    scenes = {"tiles": [TILE], "size": SIZE, "clear": CLEAR, "cloudy": [CLOUDY], "cloud": [0.30, 0.30], "seed": 7}
    search = {
        "polygon": [[-180, 60], [-180, 75], [-130, 75], [-130, 60], [-180, 60]],
        "clear": {"start": "2024-03-01", "end": "2024-03-30", "cloud": [0, 2]},
        "cloudy": {"start": "2024-02-01", "end": "2024-04-30", "cloud": [5, 80]},
    }
    archive = {"path": str(ARCHIVE), "synthetic": scenes}
    path.write_text(json.dumps({"seed": 1, "archive": archive, "search": search}))  # JSON is YAML
    return path


def scene_make(found: Findings) -> None:
    """A large scene with two clear dates, made by the CPU cores that the other steps leave."""
    shutil.rmtree(ARCHIVE, ignore_errors=True)
    ARCHIVE.mkdir()
    environment = os.environ | {"GDAL_NUM_THREADS": "4", "OMP_NUM_THREADS": "1"}
    program = ["nice", "-n", "5", sys.executable, Path(__file__).with_name("scene_product.py"), ARCHIVE, TILE, SIZE]
    begun, children = time.monotonic(), []
    for day, kind in (*((day, "clear") for day in CLEAR), (CLOUDY, "cloudy")):
        children.append(subprocess.Popen([str(part) for part in (*program, day, kind)], env=environment))
    codes = [child.wait() for child in children]
    found.keep(products={"exits": codes, "seconds": round(time.monotonic() - begun, 1), "size": SIZE})
    if any(codes):
        raise RuntimeError("a product could not be made: see the log")
    shutil.rmtree(FOLDER, ignore_errors=True)
    command = ["nice", "-n", "5", *CLOUDJOB, "run", _config(), "--run-dir", FOLDER, "--until", "download"]
    code, said, seconds = found.call(*command)
    found.keep(until_download={"exit": code, "seconds": seconds})
    if code:
        raise RuntimeError(said[-1500:])


def scene(found: Findings) -> None:
    """A whole scene by `cloudjob infer`, its time by function; then with four members if there is time."""
    if not list(FOLDER.glob("scenes/*.SAFE")):
        raise RuntimeError("the scene was not made in time")
    checkpoint = _checkpoint(found)
    for members in (1, 4):
        if members > 1 and found.left < 1.5 * found.result["1 members"]["seconds"] + 5:
            found.keep(**{"4 members": "no time left for it"})
            return
        shutil.rmtree(FOLDER / "outputs", ignore_errors=True)
        profile = WORK / f"infer-{members}.prof"
        options = ["--set", f"infer.checkpoint={checkpoint}", "--set", f"infer.members={members}"]
        program = [sys.executable, "-m", "cProfile", "-o", profile, "-m", "cloudjob", "infer", FOLDER, *options]
        code, said, seconds = found.call(*program)
        facts = {"exit": code, "seconds": seconds, "size": SIZE, "checkpoint": str(checkpoint)}
        facts["by function"] = by_function(profile)
        facts["outputs"] = {path.suffix: path.stat().st_size for path in FOLDER.glob("outputs/*/*")}
        found.keep(**{f"{members} members": facts})
        for picture in FOLDER.glob("outputs/*/*.png"):
            shutil.copyfile(picture, OUT / "scene.png")
        if code:
            raise RuntimeError(said[-1500:])


def _checkpoint(found: Findings) -> Path:
    """That of a step before, else of a training of seconds."""
    from trainings import small_run, train

    from cloudjob.diffusion import checkpoint
    from cloudjob.run.folder import RunFolder

    for run in (WORK / "epoch" / "run", WORK / "test-run"):
        if saved := checkpoint.saved(RunFolder(run).checkpoints):
            return saved[0]
    folder = small_run(WORK / "quick", "small", 64)
    train(found, folder, {"samples": 64, "batch_size": 16, "preset": "tiny" if CPU else "small"})
    return checkpoint.newest(folder.checkpoints)


def by_function(profile: Path) -> dict:
    """[calls, seconds] of the main process in the project's functions, with all that they call, and in others alone."""
    if not profile.exists():
        return {}
    ours, others = [], []
    for (file, _, name), (_, calls, alone, total, _) in pstats.Stats(str(profile)).stats.items():
        if file.startswith(OURS):
            ours.append((f"{file.removeprefix(OURS)}:{name}", [calls, round(total, 2)]))
        else:
            others.append((f"{Path(file).name}:{name}", [calls, round(alone, 2)]))
    return {"calls and seconds, ours": _longest(ours, 45), "alone, others": _longest(others, 25)}


def _longest(found: Iterable[tuple[str, list]], count: int) -> dict:
    return dict(sorted(found, key=lambda item: -item[1][1])[:count])

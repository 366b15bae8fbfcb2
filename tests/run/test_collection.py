"""outputs/collection.json: whole whoever writes it, and one at a time."""

import json
import threading

import scene_files
from scene_files import PRODUCT, pixels

from cloudjob import leases
from cloudjob.run import collection
from cloudjob.run.folder import RunFolder

NAMES = [PRODUCT.replace("T05WPS", tile) for tile in ("T04WFD", "T05WMU", "T05WPS")]


def listed(folder: RunFolder) -> list[str]:
    links = json.loads((folder.outputs / "collection.json").read_text())["links"]
    return [link["href"].split("/")[1] for link in links if link["rel"] == "item"]


def test_of_nothing_there_is_none(tmp_path):
    folder = RunFolder(tmp_path)
    collection.write(folder)
    assert not list(tmp_path.iterdir())


def test_who_waits_for_another_sees_its_items_too(tmp_path):
    folder, scene = RunFolder(tmp_path), pixels(8, 9, uncertainty=False)
    scene_files.write(folder.outputs, scene, name=NAMES[0])
    said, folder.patience = [], 2.0  # it looks again after a twentieth
    folder.say = said.append
    with next(RunFolder(tmp_path).wait([folder.lease("collection", "outputs")])):
        waiting = threading.Thread(target=collection.write, args=[folder])
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        scene_files.write(folder.outputs, scene, name=NAMES[1])
    waiting.join(30)
    assert listed(folder) == NAMES[:2]
    assert leases.held(folder.leases) == []
    assert said[0].startswith("waits: collection outputs is being made by")


def test_what_cannot_be_read_is_said(tmp_path):
    folder, scene = RunFolder(tmp_path), pixels(8, 9, uncertainty=False)
    stems = [scene_files.write(folder.outputs, scene, name=name) for name in NAMES]
    broken = stems[1].with_name(f"{NAMES[1]}.json")
    broken.write_text("{")
    said = []
    folder.say = said.append
    collection.write(folder)
    assert listed(folder) == [NAMES[0], NAMES[2]]
    assert said == [f"{broken}: cannot be read, and is left out of the collection; cloudjob infer {tmp_path}"]

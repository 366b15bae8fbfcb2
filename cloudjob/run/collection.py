"""The STAC collection of a run's restored scenes: outputs/collection.json."""

from cloudjob.run.folder import RunFolder


def write(folder: RunFolder) -> None:
    """Writes it whole, from the items that lie in outputs/. One process at a time: of several that end together, the
    last one sees the items of all."""
    if not any(folder.outputs.glob("*/*.json")):
        return

    from cloudjob.restoration import output

    for lease in folder.wait([folder.lease("collection", "outputs")]):
        with lease:
            broken = output.write_collection(folder.outputs)
    for path in broken:
        folder.say(f"{path}: cannot be read, and is left out of the collection; cloudjob infer {folder.quoted}")

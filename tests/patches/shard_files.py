"""Small shards of random triplets, for the tests of what writes and what reads them."""

import numpy as np

from cloudjob.patches.shard_writer import Writer
from cloudjob.pixels import REFERENCES

WINDOW = 16
PRODUCT = "S2A_MSIL2A_202403{}T222541_N0510_R029_T05WPS_20240331T001122"
DAYS = {"cloudy": "15", "clear": "11", "reference": "05", "reference2": "25", "reference3": "01"}
REFERENCE_DAYS = [-3.5, 10.0, -14.0]


def pair_of(references):
    """The facts of a pair with so many references."""
    products = {role: PRODUCT.format(day) for role, day in DAYS.items() if role not in REFERENCES[references:]}
    return {"products": products, "sun_elevation": dict.fromkeys(products, 21.0)}


PAIR = pair_of(1)


def triplets(count, seed=0, references=1):
    """What `Writer.add` takes; views of larger arrays, as the stage cuts them."""
    rng = np.random.default_rng(seed)
    names = ("cloudy", "clear", *REFERENCES)[: 2 + references]
    for i in range(count):
        images = rng.integers(0, 65536, (5, 4, WINDOW, 2 * WINDOW)).astype(np.uint16)[..., 3 : 3 + WINDOW]
        mask = rng.choice([0, 1, 2, 3, 4, 255], (WINDOW, WINDOW)).astype(np.uint8)
        given = dict(zip(names, images, strict=False)) | {"mask": mask}
        yield given | {"row": i, "col": 2 * i, "cloud_fraction": i / 10}


def write(path, count, *, capacity=None, references=1, seed=0, compression="none"):
    with Writer(
        path,
        capacity or count,
        window=WINDOW,
        compression=compression,
        pair=pair_of(references),
        reference_days=REFERENCE_DAYS[:references],
        attributes={"config_sha256": "abc", "settings": {"masks": {"cloud_m": 100}}},
    ) as writer:
        for triplet in triplets(count, seed, references):
            writer.add(**triplet)
    return writer.result


def index_of(**counts):
    """An index of the files <split>_<number>.h5 with these counts."""
    files = [{"file": f"{name}.h5", "count": count, "split": name.split("_")[0]} for name, count in counts.items()]
    return {"window": WINDOW, "files": files}

"""Compiles the training step of one shape, so that what is measured later finds it in the cache.

warm.py PRESET BATCH WINDOW PROCESS
"""

import sys

import torch
from machine import device
from samples import make_step, triplets

from cloudjob.diffusion.batch import Batch

preset, batch, window, process = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
arrays = triplets(batch, window)
options = {"precision": "bfloat16", "compile": True, "batch_size": batch}
loss, _ = make_step(preset, arrays, device(), process=process, **options).gradient(
    torch.arange(batch, device=device()), Batch.of(arrays, device())
)
print(float(loss))

"""What the image must be able to do: one forward pass on the CPU by every rank of an MPI world.

mpiexec -n 2 python check.py 2
"""

import sys

import torch

from cloudjob.diffusion import conditions, networks
from cloudjob.hpc import mpi

channels = conditions.channel_count("similar")
network = networks.build("tiny", condition_channels=channels)
known = torch.zeros(1, channels, 64, 64)
with torch.no_grad():
    value = network(torch.zeros(1, 4, 64, 64), torch.zeros(1), known)
with mpi.communicator() as ranks:
    shapes = ranks.gather(tuple(value.shape))
    if ranks.size != int(sys.argv[1]) or (shapes and shapes != [(1, 4, 64, 64)] * ranks.size):
        sys.exit(f"a world of {ranks.size} ranks instead of {sys.argv[1]}, outputs {shapes}")
    if ranks.rank == 0:
        print(f"forward pass on {ranks.size} ranks: {shapes}")

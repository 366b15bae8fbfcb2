"""python -m cloudjob: the form that srun, torchrun and `python -m mpi4py -m cloudjob` start."""

import sys

from cloudjob.cli.dispatch import main

sys.exit(main())

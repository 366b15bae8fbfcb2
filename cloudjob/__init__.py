"""cloudjob: cloud removal for Sentinel-2 Level-2A scenes, as restartable batch jobs on HPC clusters."""

__version__ = "0.1.0"

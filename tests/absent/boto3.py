"""Not to be found: rasterio imports boto3 where it can, 0.8 s per process, and moto alone brings it here."""

raise ImportError("boto3 is no requirement of cloudjob")

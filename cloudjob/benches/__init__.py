"""What `cloudjob bench` measures, and the plain ways it is measured against."""

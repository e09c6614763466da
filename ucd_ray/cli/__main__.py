"""`python -m ucd_ray.cli`: the command line."""

from ucd_ray.cli import main

main()

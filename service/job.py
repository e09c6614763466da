"""What a study's Ray job runs: `ucd-ray study run NAME`, whose exit code says if a second try may help.

python -m ucd_ray.service.job NAME
"""

from __future__ import annotations

import sys

from ucd_ray import cli
from ucd_ray.service.jobs import REFUSED


def main() -> None:
    """Runs it."""
    sys.argv[1:] = ["study", "run", *sys.argv[1:]]
    cli.main(refused=REFUSED)


if __name__ == "__main__":
    main()

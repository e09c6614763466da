"""How the service holds under load: a server process, and clients on the same machine.

    python -m benchmarks.service reads     requests per second, beside a bare FastAPI route
    python -m benchmarks.service lists     p99 of a page of 50 trials or studies, of many and of few
    python -m benchmarks.service streams   open event streams: every event, in order
    python -m benchmarks.service export    memory of `ucd-ray serve` while a large table leaves
    python -m benchmarks.service creates   1,000 studies, with answers that are lost and requests sent again

Studies are made up (`benchmarks.tables`).  `--trials`, `--seconds` and `--clients` make it smaller.
"""

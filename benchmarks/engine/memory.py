"""Memory of a study by the part that its processes play, sampled."""

from __future__ import annotations

import threading
from collections import Counter

import psutil

SAMPLE_S = 1.0
WORKER = ("ray::RayTrainWorker", "ray::execute")  # the second while Ray Train sets it up
OF_THE_HEAD = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE")


def part_of(name: str) -> str:
    """`workers` train; `trials` are all other actors; the rest is there without any trial."""
    if name.startswith(WORKER):
        return "workers"
    if name.startswith("ray::") and not name.startswith(OF_THE_HEAD):
        return "trials"
    return "head"


class Memory:
    """Peaks of proportional memory (PSS) of this process and all below it, in bytes, by part."""

    def __init__(self) -> None:
        self.peak: Counter[str] = Counter()
        self.processes: Counter[str] = Counter()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._done.wait(SAMPLE_S):
            used: Counter[str] = Counter()
            count: Counter[str] = Counter()
            for process in (me, *me.children(recursive=True)):
                try:
                    bytes_ = process.memory_full_info().pss
                    part = "driver" if process == me else part_of(" ".join(process.cmdline()))
                except psutil.Error:
                    continue
                for key in (part, "all"):
                    used[key] += bytes_
                    count[key] += 1
            for key in used:
                self.peak[key] = max(self.peak[key], used[key])
                self.processes[key] = max(self.processes[key], count[key])

"""What the process of the service does without."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import io, sys
from ucd_ray.service.spare import spare_memory

spare_memory()
import httpx
import pyarrow as pa
from ucd_ray.service.ray_api import RayApi
from ucd_ray.service.ray_jobs import RayJobs
from ucd_ray.service.serve import serve
from ucd_ray.tune.formats import FORMATS, write

table = pa.table({"number": pa.array([0, 1]), "state": pa.array(["COMPLETE", None])})
for form in FORMATS:
    write(table.to_reader(), form, io.BytesIO())
head = httpx.MockTransport(lambda _: httpx.Response(200, json={"logs": "said"}))
print(RayJobs(RayApi("http://head:8265", transport=head), "sqlite:////db", "python").logs("job"))
print(pa.default_memory_pool().backend_name)
unused = {"ray", "pandas", "pygments", "plotly", "matplotlib", "torch", "scipy"}
print(sorted(unused & set(sys.modules)))
"""


def test_a_service_imports_neither_ray_nor_pandas_nor_what_draws_or_trains() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout.split("\n")[:3] == ["said", "system", "[]"], done.stderr

"""What the process of the service does without."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import io, sys
import pyarrow as pa
from ucd_ray.service.serve import spare_memory
from ucd_ray.tune.formats import FORMATS, write

spare_memory()
from ucd_ray.service.app import create_app
table = pa.table({"number": pa.array([0, 1]), "state": pa.array(["COMPLETE", None])})
for form in FORMATS:
    write(table.to_reader(), form, io.BytesIO())
print(pa.default_memory_pool().backend_name)
print(sorted({"pandas", "plotly", "matplotlib", "torch", "scipy"} & set(sys.modules)))
"""


def test_a_service_imports_neither_pandas_nor_what_draws_or_trains() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["system", "[]"], done.stderr

"""What the process of the service does without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
print(sorted(name for name in unused if sys.modules.get(name)))
"""


PLAN = """
import sys

if __name__ == "__main__":  # the process of the plan imports this too
    from ucd_ray.service.spare import spare_memory

    spare_memory()
    from fastapi.testclient import TestClient
    from ucd_ray.service.app import create_app
    from ucd_ray.service.settings import Settings

    app = create_app(Settings(database=f"sqlite:///{sys.argv[1]}/studies.db"))
    client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
    body = {"tune": {"scenario": "shapes-8-2", "settings": {"trials": 3}}}
    print(client.post("/v1/studies?validate_only=true", json=body).json().get("trials"))
    print("torch" in sys.modules)
    app.state.core.close()
"""


def test_a_plan_needs_networks_and_leaves_none_in_the_service(tmp_path: Path) -> None:
    script = tmp_path / "plan.py"
    script.write_text(PLAN)
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["3", "False"], done.stderr


def test_a_service_imports_neither_ray_nor_pandas_nor_what_draws_or_trains() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout.split("\n")[:3] == ["said", "system", "[]"], done.stderr

"""A real PostgreSQL server for tests: started, crashed, started again."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

USER = "ucd"
PASSWORD = "s3cret/Zebra%Quagga@42"  # found by grep wherever it goes, and needs quoting in a URL
INITDB = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C")

# Ends the server with its test run, however that ends: then nobody holds the other end of the pipe.
GUARD = 'read _; "$1"/pg_ctl -D "$2"/data stop -m immediate >/dev/null 2>&1; rm -rf "$2"'


def binaries() -> Path | None:
    """Where initdb and postgres are: on PATH, or where Debian has them."""
    found = shutil.which("pg_ctl")
    if found:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    newest = max(versions, key=lambda path: float(path.parts[4]), default=None)
    return newest.parent if newest else None


class PostgresServer:
    """One server in a directory of its own, on 127.0.0.1; it refuses to run as root."""

    def __init__(self, bin_folder: Path) -> None:
        self.bin = bin_folder
        self.folder = Path(tempfile.mkdtemp(prefix="ucd-ray-postgres-"))
        self.log = self.folder / "log"
        self._names = itertools.count()
        self._as: dict[str, object] = {}
        if os.geteuid() == 0:
            user = next(u for u in pwd.getpwall() if u.pw_name in ("postgres", "nobody"))
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, "guard", str(self.bin), str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            **self._as,  # type: ignore[call-overload]
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run("initdb", f"--username={USER}", f"--pwfile={secret}", *INITDB)
        secret.unlink()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.bin / program, "-D", self.folder / "data", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            **self._as,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Returns once connections are taken."""
        options = f"-p {self.port} -h 127.0.0.1 -k '' -c fsync=off -c max_connections=300"
        self._run("pg_ctl", "start", "-w", "-l", str(self.log), "-o", options)

    def crash(self) -> None:
        """Stops all its processes at once; the next start recovers."""
        self._run("pg_ctl", "stop", "-m", "immediate")

    def close(self) -> None:
        """Stops it and removes its files."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()

    def url(self, database: str, *, user: str = USER, password: str | None = PASSWORD) -> str:
        """The URL of one of its databases."""
        secret = "" if password is None else ":" + quote(password, safe="")
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def run_sql(self, text: str, database: str = "postgres") -> None:
        """Runs one statement."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(text.encode())

    def new_database(self) -> str:
        """The name of an empty database."""
        name = f"studies{next(self._names)}"
        self.run_sql(f"CREATE DATABASE {name}")
        return name


@contextlib.contextmanager
def running() -> Iterator[PostgresServer]:
    """A server until the end of the block; the test is skipped where none is installed."""
    found = binaries()
    if found is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    server = PostgresServer(found)
    server.start()
    yield server
    server.close()

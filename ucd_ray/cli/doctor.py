"""`ucd-ray doctor`: what is wrong here, and how to mend it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ucd_ray.cli import remote
from ucd_ray.cli.shared import console, one_of

if TYPE_CHECKING:
    from ucd_ray.doctor.finding import Check, Finding

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}
WRONG = 1  # exit code


def doctor(
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster, or its dashboard's URL; default: RAY_ADDRESS."),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="URL of a service, to look at it and its clock.")
    ] = None,
    output: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Look for what is wrong with this installation or a cluster; exit code 1 if something is."""
    from ucd_ray.doctor.finding import examine

    one_of("format", output, ("table", "json"))
    found = examine(checks(address, server or remote.server()))
    if output == "json":
        console.print_json(data=[finding.content() for finding in found])
    else:
        console.print(table_of(found))
    if any(finding.state == "wrong" for finding in found):
        raise typer.Exit(WRONG)


def checks(address: str | None, server: str | None) -> dict[str, Check]:
    """All checks, by name, in the order of the table."""
    import ucd_ray.service.migrations
    from ucd_ray.doctor import cluster, installation, network, storage
    from ucd_ray.service.database import VERSION_TABLE

    folder = Path(ucd_ray.service.migrations.__file__).parent
    found: dict[str, Check] = {
        "python": installation.python,
        "packages": installation.packages,
        "gpus": installation.gpus,
        "home": storage.home,
        "storage": storage.storage,
        "database": partial(storage.database, {VERSION_TABLE: folder}),
        "ray token": cluster.token,
        "cluster": partial(cluster.cluster, address),
        "ports": ports,
    }
    if server:
        found["server"] = partial(network.server, server)
    return {**found, "clock": partial(network.clock, server, address)}


def ports() -> list[Finding]:
    """Those of the service's settings.  Raises ConfigError for settings that are wrong."""
    from ucd_ray.doctor import network
    from ucd_ray.service.settings import read_settings

    settings = read_settings()
    return list(network.ports(settings.host, settings.port))


def table_of(found: list[Finding]) -> Table:
    """For people: what is wrong has its cure below it."""
    table = Table()
    for column in ("check", "", "found"):
        table.add_column(column, overflow="fold")
    for finding in found:
        told = finding.found + (f"\n→ {finding.mend}" if finding.mend else "")
        table.add_row(finding.check, MARKS[finding.state], Text(told))
    return table

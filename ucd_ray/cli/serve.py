"""`ucd-ray serve` and `ucd-ray token`: the REST service, and who may use it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ucd_ray.cli.shared import console, say
from ucd_ray.errors import ConfigError

if TYPE_CHECKING:
    from ucd_ray.tune.database import Database

token_app = typer.Typer(help="Make, list and revoke tokens of the service.", no_args_is_help=True)


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default 8080).")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="NAME=DIR: a data set that clients choose by its name; repeatable."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: pretrained weights by name; repeatable."),
    ] = None,
    ray_dashboard: Annotated[
        str | None,
        typer.Option(help="Dashboard of a Ray cluster; default: a head on this machine."),
    ] = None,
    ray_token_file: Annotated[
        Path | None, typer.Option(help="File with that cluster's token, mode 0600.")
    ] = None,
) -> None:
    """Serve studies over REST until Ctrl-C; they go on at the next start."""
    from ucd_ray.service.spare import spare_memory

    spare_memory()
    from ucd_ray.service.serve import serve as run
    from ucd_ray.service.settings import read_settings

    settings = read_settings(
        host=host,
        port=port,
        data_sets=named("--data", data),
        weights=named("--weights", weights),
        ray_dashboard=ray_dashboard,
        ray_token_file=ray_token_file,
    )
    run(settings, say)


def named(option: str, given: list[str] | None) -> dict[str, str] | None:
    """NAME=PATH options as a mapping; paths that exist become absolute.  Raises ConfigError."""
    if not given:
        return None
    found = {}
    for text in given:
        name, mark, path = text.partition("=")
        if not mark or not name or not Path(path).expanduser().exists():
            raise ConfigError(f"{option} ({text!r}) must be NAME=PATH with a path that exists")
        found[name] = str(Path(path).expanduser().absolute())
    return found


@token_app.command("create")
def token_create(
    owner: Annotated[str, typer.Argument(help="Whose studies it is for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read, write (default) or admin; each contains those before it."),
    ] = None,
    days: Annotated[
        float | None, typer.Option(help="Valid so long; default: no end.", min=0)
    ] = None,
) -> None:
    """Make a token and print it: it is not shown again."""
    from ucd_ray.service.tokens import create_token

    typer.echo(create_token(database(), owner, scope or ["write"], days=days))


@token_app.command("list")
def token_list() -> None:
    """List all tokens, without their secrets."""
    import time

    from ucd_ray.service.tokens import list_tokens

    table = Table()
    for column in ("id", "owner", "scopes", "created", "expires", "state"):
        table.add_column(column, overflow="fold", no_wrap=column in ("id", "state"))
    for token in list_tokens(database()):
        ends = "never" if token.expires is None else _day(token.expires)
        scopes, state = ", ".join(sorted(token.scopes)), token.state(time.time())
        table.add_row(token.id, token.owner, scopes, _day(token.created), ends, state)
    console.print(table)


@token_app.command("revoke")
def token_revoke(key: Annotated[str, typer.Argument(help="Its id, as listed.")]) -> None:
    """Make a token invalid at once."""
    from ucd_ray.service.tokens import revoke_token

    revoke_token(database(), key)
    say(f"token '{key}' is revoked")


def database() -> Database:
    """The database of studies, with the service's tables."""
    from ucd_ray.service.database import open_database
    from ucd_ray.service.settings import read_settings

    return open_database(read_settings().database)


def _day(time: float) -> str:
    return datetime.datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M")

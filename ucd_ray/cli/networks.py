"""What comes of a study: its best trial, and the use of trained networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ucd_ray.cli.remote import over_http
from ucd_ray.cli.shared import (
    TABLE_FORMATS,
    Data,
    absolute,
    check_table_format,
    console,
    one_of,
    say,
    show,
    show_text,
)
from ucd_ray.cli.study import Name
from ucd_ray.errors import ConfigError

NetworkOption = Annotated[
    str,
    typer.Option(
        "--network", help="A study (its best trial), or a file of `export` or `train --save`."
    ),
]
Step = Annotated[
    int | None, typer.Option(help="With a study: after which step; default: the last.", min=0)
]
Trial = Annotated[int | None, typer.Option(help="Number of the trial; default: the best.", min=0)]


@over_http("studies:study_best")
def study_best(
    name: Name,
    trial: Trial = None,
    export: Annotated[
        Path | None,
        typer.Option(help="YAML file to write: `ucd-ray train --recipe FILE` trains it again."),
    ] = None,
    replicate: Annotated[
        str,
        typer.Option(
            help="Where trials have several: which one, or all, each in a file FILE-r<k> of --export.",
            metavar="K",
        ),
    ] = "0",
    output: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Show the best trial of a study, or write the file that trains it again."""
    from ucd_ray.tune import best
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.places import places

    one_of("format", output, ("table", "json"))
    if replicate != "all" and not replicate.isdigit():
        raise ConfigError(f"--replicate '{replicate}' must be a number, 0, 1 ..., or all")
    if replicate == "all" and export is None:
        raise ConfigError("--replicate all writes a file for each: give --export FILE")
    database, first = Database(places().database), 0 if replicate == "all" else int(replicate)
    found = best.measured_trial(database, name, trial, replicate=first)
    files = {}
    if export is not None:
        files = {export: found}
        if replicate == "all" and found.replicate is not None:
            every = range(found.spec.replicates)
            files = {
                export.with_stem(f"{export.stem}-r{k}"): best.measured_trial(
                    database, name, found.number, replicate=k
                )
                for k in every
            }
        for path, one in files.items():
            best.export(one, path)
    if output == "json":
        console.print_json(data=found.content())
        return
    console.print(best.best_view(found))
    for path, one in files.items():
        say(f"wrote {path}: {one.name}; `ucd-ray train --recipe {path}` trains it again")
    if len(files) == 1 and found.replicate is not None:
        say("this is one of its replicates alone: --replicate K is another, --replicate all each")


def evaluate(
    network: NetworkOption,
    trial: Trial = None,
    step: Step = None,
    images: Annotated[str, typer.Option(help="val or train.")] = "val",
    data: Data = None,
    output: Annotated[str, typer.Option("--format", help=", ".join(TABLE_FORMATS))] = "table",
    out: Annotated[Path | None, typer.Option(help="File to write; default: the terminal.")] = None,
) -> None:
    """Score a trained network: IoU of every class, means of old and new ones."""
    check_table_format(output)
    from ucd_ray.tune import evaluation
    from ucd_ray.tune.networks import open_network

    one_of("images", images, evaluation.SPLITS)
    found = evaluation.evaluate(
        open_network(network, trial=trial, step=step),
        split=images,
        data=absolute(data),
        console=console,
    )
    if output == "table":
        show_text(evaluation.evaluation_view(found), out)
    else:
        show(found.table().to_reader(), "", output, out)


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, or directories of them.")],
    network: NetworkOption,
    trial: Trial = None,
    step: Step = None,
    out: Annotated[Path, typer.Option(help="Directory for masks and overlays.")] = Path(
        "predictions"
    ),
) -> None:
    """Segment images: a mask of class ids, an overlay, and the legend of the colours."""
    from ucd_ray.predictions import LEGEND, find_images, plan_outputs, predict_files, shares
    from ucd_ray.tune.networks import open_network

    outputs = plan_outputs(find_images(images), out)
    found = open_network(network, trial=trial, step=step)
    for files, ids in predict_files(found, outputs):
        shown = ", ".join(f"{name} {percent:.1f} %" for name, percent in shares(found.info, ids))
        say(f"{files.image}: {shown}")
    say(f"wrote {len(outputs)} masks and overlays to {out}; colours: {out / LEGEND}")


def export(
    network: NetworkOption,
    trial: Trial = None,
    step: Step = None,
    out: Annotated[Path, typer.Option(help="Directory to write to.")] = Path("network"),
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Write ONNX too.")] = True,
) -> None:
    """Write a trained network for use elsewhere: safetensors, ONNX, and its class names."""
    from ucd_ray.onnx_export import check_installed
    from ucd_ray.tune.networks import open_network, write_network

    if onnx:
        check_installed()
    for line in write_network(open_network(network, trial=trial, step=step), out, onnx=onnx):
        say(line)

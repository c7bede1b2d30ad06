"""`glue cluster`: which models are alike, told here and now, without the service. Torch is imported only to run it."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from glue.cli.imports import quickly
from glue.cli.merge import bar
from glue.cli.telling import console, told
from glue.specs.job import ClusteringSpec


def cluster(
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="Folders, or folder+adapter.")],
    base: Annotated[Path | None, typer.Option(help="What they were fine-tuned from; for task vectors.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Above it models are alike; 0.95 for raw weights.")] = None,
    linkage: Annotated[Literal["leader", "complete", "average"], typer.Option()] = "complete",
    weights: Annotated[Literal["raw", "task_vector"], typer.Option()] = "raw",
    per: Annotated[Literal["model", "layer", "matrix"], typer.Option(help="How fine the table is.")] = "model",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the heat map.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Compare all pairs of models in one pass over each, and put those that are alike into families."""
    with quickly("torch"):
        from glue.clustering.run import cluster as run

    with told():
        spec = ClusteringSpec.parse({"threshold": threshold, "linkage": linkage, "weights": weights})
        with bar("comparing") as progress:
            found = run(models, base, spec, progress)
        if plot is not None:
            from glue.publishing.plots import draw_similarity

            draw_similarity(found["models"], found["similarity"], plot)
    if as_json:
        console.print_json(json.dumps(found))
    else:
        _show(found, per)


def _show(found: dict[str, Any], per: str) -> None:
    matrices = {"model": {"": found["similarity"]}, "layer": found["layers"], "matrix": found["matrices"]}[per]
    for label, values in matrices.items():
        console.print(_table(f"{per} {label}".strip() if label else "", found["models"], values))
    for number, family in enumerate(found["families"], 1):
        console.print(f"family {number}: {', '.join(family)}", highlight=False, markup=False)


def _table(title: str, names: list[str], values: list[list[float | None]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title=title or None, title_justify="left")
    table.add_column("", overflow="fold")
    for number in range(1, len(names) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, (name, row) in enumerate(zip(names, values, strict=True), 1):
        cells = ["-" if value is None else f"{value + 0.0:.3f}" for value in row]
        table.add_row(f"{number} {name}", *cells)
    return table

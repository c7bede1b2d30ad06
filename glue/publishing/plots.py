"""The report's pictures: similarity heat map, search trace, final bars. The same report gives the same bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID = "#1b1f24", "#6e7781", "#d8dee4"
ROLE_COLOURS = {"member": "#9aa7b4", "merge": "#3b82c4", "mixture": "#d97706"}
FAMILY_COLOURS = ("#3b82c4", "#d97706", "#2f9e6e", "#a855c7", "#c2410c", "#0e7490")
DOTS_PER_INCH = 144


def draw_plots(report: dict[str, Any], folder: Path) -> None:
    """Write similarity.png, search.png and models.png of a report into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _save(_similarity(report), folder / "similarity.png")
    _save(_search(report), folder / "search.png")
    _save(_models(report), folder / "models.png")


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    # Without this the file names the library's version, and equal pictures would differ.
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})


def _axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    axes.tick_params(colors=MUTED, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    return figure, axes


def _similarity(report: dict[str, Any]) -> Figure:
    names = [name for family in report["families"] for name in family["members"]]
    values = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(values, 1.0)
    for matrix in report["similarity"]:
        places = [names.index(name) for name in matrix["members"]]
        values[np.ix_(places, places)] = matrix["values"]
    return _heat_map(names, values)


def draw_similarity(names: Sequence[str], values: Sequence[Sequence[float]], path: Path) -> None:
    """Write the heat map of a similarity matrix of these models."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(_heat_map(names, np.array(values)), path)


def _heat_map(names: Sequence[str], values: np.ndarray[Any, Any]) -> Figure:
    size = max(3.6, 0.62 * len(names) + 1.6)
    figure, axes = _axes(size + 0.8, size, "Similarity (column cosine)")
    image = axes.imshow(values, vmin=min(0.0, float(np.nanmin(values))), vmax=1.0, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    _write_values(axes, values)
    figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=8, colors=MUTED)
    return figure


def _write_values(axes: Axes, values: np.ndarray[Any, Any]) -> None:
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        # Adding zero makes -0.0 a plain 0.
        text = "-" if np.isnan(value) else f"{round(float(value), 2) + 0.0:.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if value > 0.6 else MUTED)


def _search(report: dict[str, Any]) -> Figure:
    figure, axes = _axes(7.2, 3.6, "Search: proxy score of every candidate")
    searched = [family for family in report["families"] if family["trials"]]
    singles = {row["name"]: row["proxy"]["mean"] for row in report["models"]}
    for index, family in enumerate(searched):
        _trace(
            axes, family, max(singles[name] for name in family["members"]), FAMILY_COLOURS[index % len(FAMILY_COLOURS)]
        )
    axes.set_xlabel("candidate (0: the best single model of the family)", color=MUTED, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("mean proxy score", color=MUTED, fontsize=9)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    if searched:
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, "every family has one member: nothing to search", ha="center", transform=axes.transAxes)
    return figure


def _trace(axes: Axes, family: dict[str, Any], start: float, colour: str) -> None:
    means = [np.nan if trial["mean"] is None else trial["mean"] for trial in family["trials"]]
    best = np.fmax.accumulate([start, *means])
    axes.scatter(range(1, len(means) + 1), means, s=18, color=colour, alpha=0.55, linewidths=0)
    axes.step(range(len(best)), best, where="post", color=colour, label=f"{family['name']}: best so far")


def _models(report: dict[str, Any]) -> Figure:
    rows = report["models"]
    figure, axes = _axes(7.2, 0.42 * len(rows) + 1.5, "Mean accuracy on items that the search never saw")
    places = np.arange(len(rows))[::-1]
    for place, row in zip(places, rows, strict=True):
        score = row["report"]
        axes.barh(place, score["mean"], xerr=score["stderr"], color=ROLE_COLOURS[row["role"]], ecolor=INK, height=0.66)
        axes.text(score["mean"] + score["stderr"] + 0.012, place, f"{100 * score['mean']:.1f}", va="center", fontsize=8)
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.set_xlim(0, 1.08)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure

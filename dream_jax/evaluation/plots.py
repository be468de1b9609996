"""Plots of evaluations as PNG files. None of them opens a window."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dream_jax.metrics import METRICS, first_that_measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v")


def metrics_against_steps(record: dict, names: list[str], path: Path) -> None:
    """One panel a metric: its value against the network evaluations, a line for each sampler of each model.

    Bands are the spread over seeds; the grey lines are the baselines. An infinite metric has no panel.
    """
    names = _finite(record, names) or names
    baselines, lines = _baselines(record["rows"]), _lines(record["rows"])
    figure = figure_of(len(names))
    for axes, name in zip(figure.axes, names, strict=True):
        for rows, style in zip(lines.values(), _looks(lines), strict=True):
            steps, values = [row["steps"] for row in rows], [row[name] for row in rows if name in row]
            if len(values) != len(steps):
                continue
            axes.plot(steps, values, **style)
            if f"{name}_spread" in rows[0]:
                spread = [row[f"{name}_spread"] for row in rows]
                low, high = ([v + sign * s for v, s in zip(values, spread, strict=True)] for sign in (-1, 1))
                axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
        for row, stroke in zip(baselines, _STYLES, strict=False):
            if name in row:
                axes.axhline(row[name], color="grey", linewidth=1, linestyle=stroke, label=row["name"])
        _steps_axis(axes, sorted({row["steps"] for rows in lines.values() for row in rows}))
        axes.set_ylabel(METRICS[name].title)
        # What is known of a picture may come back to the bit, and there is no logarithm of 0.
        if METRICS[name].logarithmic and any(row.get(name, 0) > 0 for row in record["rows"]):
            axes.set_yscale("log")
    _finish(figure, path)


def perception_against_distortion(record: dict, names: list[str], path: Path) -> None:
    """The trade between the two (Blau & Michaeli 2018): a path for each sampler of each model, from few to many steps.

    Each of the two is the most telling metric of it among the names that is finite somewhere. Sets without originals
    have no distortion, and get no plot.
    """
    names = _finite(record, names)
    distortion, perception = (first_that_measures(what, names) for what in ("distortion", "perception"))
    if distortion is None or perception is None:
        return
    lines = _lines(record["rows"])
    figure = figure_of(1, width=9, height=6)
    axes = figure.axes[0]
    for rows, style in zip(lines.values(), _looks(lines), strict=True):
        axes.plot([row[distortion] for row in rows], [row[perception] for row in rows], **style)
        for row in rows:
            where = (row[distortion], row[perception])
            axes.annotate(str(row["steps"]), where, fontsize=7, xytext=(3, 3), textcoords="offset points")
    for row, marker in zip(_baselines(record["rows"]), "*PX", strict=False):
        at = [row[distortion]], [row[perception]]
        axes.plot(*at, marker, color="grey", markersize=10, linestyle="none", label=row["name"])
    x, y = METRICS[distortion], METRICS[perception]
    axes.set_xlabel(f"{x.title} (distortion: {'right' if x.higher_is_better else 'left'} is better)")
    axes.set_ylabel(f"{y.title} (perception: {'higher' if y.higher_is_better else 'lower'} is better)")
    axes.set_title("numbers are network evaluations", fontsize=9)
    _finish(figure, path)


class Panel(NamedTuple):
    """A panel of the gap's plot: the names of the training value (None: not plotted) and of the sampling value."""

    title: str
    training: str | None
    sampling: str
    logarithmic: bool


def gap(record: dict, panels: list[Panel], path: Path) -> None:
    """Training against sampling at the same noise levels, of a record of `gap.measure`."""
    figure = figure_of(len(panels))
    for axes, panel in zip(figure.axes, panels, strict=True):
        for number, (name, model) in enumerate(record["models"].items()):
            rows, colour = model["rows"], f"C{number % 10}"
            logsnr, sampling = [row["logsnr"] for row in rows], [row[panel.sampling] for row in rows]
            axes.plot(logsnr, sampling, "o-", color=colour, markersize=3, label=f"{name}, sampling")
            if panel.training is not None:
                training = [row[panel.training] for row in rows]
                axes.plot(logsnr, training, "--", color=colour, linewidth=1, label=f"{name}, training")
        axes.set_xlabel("log signal-to-noise ratio (sampling runs to the right)")
        axes.set_ylabel(panel.title)
        if panel.logarithmic:
            axes.set_yscale("log")
    _finish(figure, path)


# Of the lines of metrics.jsonl; those that a run lacks are left out.
_DYNAMICS = {
    "loss": "loss",
    "eps_error": "mean |eps - eps_hat|, before the update",
    "lam": "rectification weight lam, mean",
    "gradient_norm": "norm of the gradient",
    "update_norm": "norm of the update",
}


def training(lines: list[dict], weight: tuple | None, path: Path) -> None:
    """A run's training: losses, self-estimate, weight and norms against steps.

    Args:
      lines: those of metrics.jsonl.
      weight: (times t / T, lam at the end of training) of an objective that rectifies, else None.
    """
    names = [name for name in _DYNAMICS if any(line.get(name) for line in lines)]
    figure = figure_of(len(names) + 1 + (weight is not None))
    quartiles, *others = figure.axes
    for quartile in range(1, 5):
        of_it = [(line["step"], line[key]) for line in lines if (key := f"loss_quartile_{quartile}") in line]
        if of_it:
            _curve(quartiles, *zip(*of_it, strict=True), label=f"quartile {quartile}")
    quartiles.set_ylabel("loss by quartile of the noise level, 1 the cleanest")
    quartiles.set_yscale("log")
    for axes, name in zip(others, names, strict=False):
        steps, values = zip(*[(line["step"], line[name]) for line in lines if name in line], strict=True)
        _curve(axes, steps, values)
        axes.set_ylabel(_DYNAMICS[name])
    for axes in figure.axes[: len(names) + 1]:
        axes.set_xlabel("steps")
    if weight is not None:
        axes = figure.axes[-1]
        axes.plot(*weight)
        axes.set_xlabel("t / T")
        axes.set_ylabel("rectification weight lam at the end of training")
    _finish(figure, path)


def _curve(axes, steps, values, **style):
    # A short run has one line in its log, and no line leads through one point.
    axes.plot(steps, values, linewidth=1, marker="o" if len(steps) == 1 else None, **style)


def figure_of(panels: int, width: float = 5.5, height: float = 4) -> "Figure":
    """A figure of so many empty panels, at most three in a row, each of this size in inches."""
    # Here, as no start of training or drawing should wait the half second that this takes.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(panels, 3)
    down = -(-panels // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    FigureCanvasAgg(figure)
    for panel in range(panels):
        figure.add_subplot(down, across, panel + 1).grid(alpha=0.3)
    return figure


def _finite(record: dict, names: list[str]) -> list[str]:
    """The metrics that are a number in some row: PSNR is infinite of pictures that come back to the bit."""
    return [name for name in names if any(math.isfinite(row.get(name, math.nan)) for row in record["rows"])]


def _baselines(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["model"] is None]


def _lines(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """{(model, sampler): its rows by steps}."""
    lines = {}
    for row in rows:
        if row["sampler"]:
            lines.setdefault((row["model"], row["sampler"]), []).append(row)
    return {line: sorted(rows, key=lambda row: row["steps"]) for line, rows in lines.items()}


def _looks(lines: dict[tuple[str, str], list[dict]]) -> Iterator[dict]:
    """Colour says the sampler, stroke and marker say the model."""
    models, samplers = (list(dict.fromkeys(names)) for names in zip(*lines, strict=True))
    for model, sampler in lines:
        number = models.index(model)
        yield {
            "color": f"C{samplers.index(sampler) % 10}",
            "linestyle": _STYLES[number % len(_STYLES)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "markersize": 4,
            "label": sampler if len(models) == 1 else f"{model}, {sampler}",
        }


def _steps_axis(axes: "Axes", steps: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(n) for n in steps])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations")


def _finish(figure: "Figure", path: Path) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=120)

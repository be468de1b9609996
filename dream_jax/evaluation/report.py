"""The report of a comparison: one HTML file that opens without a network."""

import base64
import importlib.resources
import io
import json
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from dream_jax.data import held_out
from dream_jax.evaluation import comparison, plots, published, verdicts
from dream_jax.evaluation.inputs import make_inputs
from dream_jax.experiment import build
from dream_jax.files import atomic, grids
from dream_jax.metrics import METRICS, first_that_measures
from dream_jax.training import origin

_CLOCKS = {"step": "steps of training", "seconds": "seconds of training"}


def write(record: dict, members: list[comparison.Member], path: Path) -> None:
    """Writes PATH (HTML), and its content beside it as JSON.

    Args:
      record: of `comparison.advance`; members: its runs, whose pictures are shown.
    """
    rows, metrics = record["rows"], verdicts.metrics_of(record["rows"])
    samplers = sorted({row["sampler"] for row in rows})
    sampler = record["config"]["evaluation"]["samplers"][0]
    steps = max(row["steps"] for row in rows)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = importlib.resources.files("dream_jax.evaluation").joinpath("report.html").read_text()
    page = environment.from_string(text).render(
        title="Which is better, and when?",
        variants=list(record["variants"]),
        speeds=_speeds(record, metrics, sampler, steps),
        table=_table(record, metrics, sampler, steps),
        published=_published(members),
        plots=[
            *(_convergence(record, metric, clock, sampler, steps) for clock in _CLOCKS for metric in metrics),
            *(_against_steps(record, metric, name) for name in samplers for metric in metrics),
            *_tradeoff(record, metrics, sampler),
        ],
        pictures=json.dumps(_pictures(members)),
        facts={
            "variants": json.dumps(record["variants"]),
            "seeds of training": ", ".join(map(str, record["seeds"])),
            "measured at": f"{', '.join(map(str, record['points']))} {record['unit']} of training",
            "time": record["time"],
            "sampler": f"{sampler}, {steps} steps, unless said otherwise",
            "device": record["device"],
            "versions": ", ".join(f"{name} {version}" for name, version in origin.versions().items()),
            "config": json.dumps(record["config"]),
        },
    )
    atomic.write_text(path, page)
    atomic.write_json(path.with_suffix(".json"), record)


def _first(record):
    return next(iter(record["variants"]))


def _speeds(record, metrics, sampler, steps):
    """(headings, rows), like the paper's claims: how soon, and at how few sampling steps, variants are as good."""
    chosen = [first_that_measures(what, metrics) for what in ("distortion", "perception")]
    chosen, first, most = [metric for metric in chosen if metric], _first(record), max(_counts(record))
    headings, rows = [""], []
    for metric in chosen:
        title = METRICS[metric].title
        headings += [
            f"{title}: the last of {first} at this share of its steps",
            "of its seconds",
            f"as good as {first} at {most}, at sampling steps",
            f"{first} as good as it at {most}, at",
        ]
    for variant in list(record["variants"])[1:]:
        cells = []
        for metric in chosen:
            for clock in _CLOCKS:
                cells.append(_span(verdicts.speed_up(record, variant, metric, clock, sampler, steps)))
            cells.append(_enough(record, variant, first, metric, sampler))
            cells.append(_enough(record, first, variant, metric, sampler))
        rows.append([variant, *cells])
    return headings, rows


def _span(shares):
    had = [share for share in shares if share is not None]
    if len(had) < len(shares):
        return f"in {len(had)} of {len(shares)} seeds"
    if len(shares) == 1:
        return f"{shares[0]:.2f}"
    return f"{np.mean(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"


def _counts(record):
    return sorted({row["steps"] for row in record["rows"]})


def _enough(record, variant, other, metric, sampler):
    """At which numbers of sampling steps a variant is as good as another one at its most."""
    last, sign = record["points"][-1], 1 if METRICS[metric].higher_is_better else -1

    def value(name, steps):
        rows = verdicts.of(record["rows"], variant=name, point=last, sampler=sampler, steps=steps)
        return sign * np.mean([verdicts.mean(row, metric) for row in rows])

    most = max(_counts(record))
    return ", ".join(str(n) for n in _counts(record) if value(variant, n) >= value(other, most)) or "none measured"


def _table(record, metrics, sampler, steps):
    """(headings, rows) at the last point: means and spreads over seeds, and how far from the first variant."""
    rows = []
    for baseline in record["baselines"]:
        rows.append([baseline["name"], *(f"{verdicts.mean(baseline, m):{METRICS[m].digits}}" for m in metrics)])
    for variant in record["variants"]:
        cells = []
        for metric in metrics:
            digits = METRICS[metric].digits
            of_seeds = verdicts.of(
                record["rows"], variant=variant, point=record["points"][-1], sampler=sampler, steps=steps
            )
            values = [verdicts.mean(row, metric) for row in of_seeds]
            cell = f"{np.mean(values):{digits}}"
            if len(values) > 1:
                cell += f" ± {np.std(values, ddof=1):.1g}"
            apart = None
            if variant != _first(record):
                apart = verdicts.difference(record, variant, metric, sampler, steps)
            if apart is not None:
                cell += f" [{apart[1]:+{digits}}, {apart[2]:+{digits}}]"
            cells.append(cell)
        rows.append([variant, *cells])
    return ["", *(METRICS[metric].title for metric in metrics)], rows


def _published(members):
    """{"title", "table"} of the paper's figures for these variants where the setting is the paper's, else None."""
    setting = published.setting_of(members[0].config)
    if setting is None:
        return None
    found = {member.variant: published.figures_of(setting, member.config.objective) for member in members}
    rows = [[name, *map(str, figures)] for name, figures in found.items() if figures is not None]
    return {"title": setting.title, "table": (["", *published.METRICS], rows)} if rows else None


def _axes(metric, label):
    figure = plots.figure_of(1, width=5.2, height=3.8)
    (axes,) = figure.axes
    axes.set_xlabel(label)
    axes.set_ylabel(METRICS[metric].title)
    return figure, axes


def _svg(figure, about, metric=None):
    """{"about", "svg"}: a plot as text that lies within the page; of a metric, which says how its axis runs."""
    values = [value for line in figure.axes[0].lines for value in line.get_ydata()]
    if metric is not None and METRICS[metric].logarithmic and max(values, default=0) > 0:
        figure.axes[0].set_yscale("log")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return {"about": about, "svg": text[text.index("<svg") :]}


def _curves(axes, record, metric, across, **wanted):
    """A line for each variant: a metric against a column of its rows. Returns the last one's places."""
    for number, variant in enumerate(record["variants"]):
        of_seeds = [
            sorted(verdicts.of(record["rows"], variant=variant, seed=seed, **wanted), key=lambda row: row[across])
            for seed in record["seeds"]
        ]
        x = np.mean([[row[across] for row in rows] for rows in of_seeds], axis=0)
        _line(axes, x, [[verdicts.mean(row, metric) for row in rows] for rows in of_seeds], variant, number)
    return x


def _convergence(record, metric, clock, sampler, steps):
    figure, axes = _axes(metric, _CLOCKS[clock])
    _curves(axes, record, metric, clock, sampler=sampler, steps=steps)
    return _svg(figure, f"{METRICS[metric].title} against {_CLOCKS[clock]}", metric)


def _against_steps(record, metric, sampler):
    figure, axes = _axes(metric, f"sampling steps of {sampler}")
    axes.set_xscale("log", base=2)
    counts = _curves(axes, record, metric, "steps", sampler=sampler, point=record["points"][-1])
    axes.set_xticks(counts, [f"{count:g}" for count in counts])
    axes.minorticks_off()
    return _svg(figure, f"{METRICS[metric].title} against sampling steps, {sampler}", metric)


def _line(axes, x, of_seeds, label, number):
    """The mean over seeds, and a band between the lowest and the highest."""
    of_seeds, colour = np.array(of_seeds), f"C{number % 10}"
    axes.plot(x, of_seeds.mean(0), "o-", color=colour, markersize=3, label=label)
    axes.fill_between(x, of_seeds.min(0), of_seeds.max(0), color=colour, alpha=0.15, linewidth=0)


def _tradeoff(record, metrics, sampler):
    distortion, perception = (first_that_measures(what, metrics) for what in ("distortion", "perception"))
    if distortion is None or perception is None:
        return []
    figure, axes = _axes(perception, METRICS[distortion].title)
    for number, variant in enumerate(record["variants"]):
        rows = verdicts.of(record["rows"], variant=variant, point=record["points"][-1], sampler=sampler)
        path = []
        for steps in sorted({row["steps"] for row in rows}):
            at = verdicts.of(rows, steps=steps)
            path.append([np.mean([verdicts.mean(row, metric) for row in at]) for metric in (distortion, perception)])
            axes.annotate(str(steps), path[-1], fontsize=7, xytext=(3, 3), textcoords="offset points")
        axes.plot(*zip(*path, strict=True), "o-", color=f"C{number % 10}", markersize=3, label=variant)
    return [_svg(figure, "the perception-distortion plane; numbers are sampling steps", perception)]


def _pictures(members):
    """{name: [picture, ...]} as data URLs: what was observed, the originals and each variant's, of its first seed."""
    experiment = build(members[0].config)
    inputs = make_inputs(experiment, held_out.eval_pictures(members[0].config)).first(comparison.SHOWN)
    columns = dict(inputs.baselines)
    for member in members:
        if member.variant not in columns:
            columns[member.variant] = np.load(member.workdir / "shown.npy")
    columns["original" if experiment.task.paired else "held out"] = inputs.pictures
    return {name: [_url(experiment.task.shown(picture)) for picture in pictures] for name, pictures in columns.items()}


def _url(picture):
    file = io.BytesIO()
    Image.fromarray(grids.shown(picture)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

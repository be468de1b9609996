"""What the measured rows of a comparison say: which variant is better, how soon, and how sure that is."""

import numpy as np

from dream_jax.metrics import METRICS


def mean(row: dict, metric: str) -> float:
    """A metric of a row, over its pictures."""
    return float(np.mean(row[metric]))


def of(rows: list[dict], **wanted) -> list[dict]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def metrics_of(rows: list[dict]) -> list[str]:
    """The metrics that were measured, in METRICS' order."""
    return [name for name in METRICS if name in rows[0]]


def reached(rows: list[dict], metric: str, value: float, clock: str) -> float | None:
    """Where the curve of rows, by `clock`, first is as good as a value, between points; None where it never is."""
    rows = sorted(rows, key=lambda row: row[clock])
    sign = 1 if METRICS[metric].higher_is_better else -1
    times, values = [row[clock] for row in rows], [sign * mean(row, metric) for row in rows]
    value *= sign
    for i, found in enumerate(values):
        if found >= value:
            if i == 0 or found == values[i - 1]:
                return float(times[i])
            part = (value - values[i - 1]) / (found - values[i - 1])
            return float(times[i - 1] + part * (times[i] - times[i - 1]))
    return None


def speed_up(record: dict, variant: str, metric: str, clock: str, sampler: str, steps: int) -> list[float | None]:
    """For each seed: the share of the first variant's steps or seconds after which this one has its last value.

    clock: "step" or "seconds". None where it does not come to it.
    """
    first, shares = next(iter(record["variants"])), []
    for seed in record["seeds"]:
        theirs, ours = (
            of(record["rows"], variant=name, seed=seed, sampler=sampler, steps=steps) for name in (first, variant)
        )
        last = max(theirs, key=lambda row: row["step"])
        found = reached(ours, metric, mean(last, metric), clock)
        shares.append(None if found is None else found / last[clock])
    return shares


def difference(record: dict, variant: str, metric: str, sampler: str, steps: int) -> tuple[float, float, float] | None:
    """(mean, low, high) of this variant's last values less the first one's: a paired bootstrap over pictures, 95%.

    Means over seeds are taken first. None for metrics of whole sets.
    """
    last, each = record["points"][-1], []
    for name in (next(iter(record["variants"])), variant):
        rows = of(record["rows"], variant=name, point=last, sampler=sampler, steps=steps)
        each.append(np.mean([np.atleast_1d(row[metric]) for row in rows], axis=0))
    apart = each[1] - each[0]
    if len(apart) == 1:
        return None
    drawn = np.random.default_rng(0).integers(0, len(apart), (2000, len(apart)))
    low, high = np.quantile(apart[drawn].mean(1), (0.025, 0.975))
    return float(apart.mean()), float(low), float(high)

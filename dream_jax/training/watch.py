"""Numbers that go wrong: a loss or gradient that is not finite, and a loss that rises and stays up, as in a collapse.

Functions of the steps' metrics alone, so that all processes, and a repeated run, come to the same result. Steps are
counted from 1: step n takes the state of n - 1 updates to that of n.

How large a loss is depends mostly on the noise levels that were drawn. So each quartile of the levels has a running
mean of its log loss, and a step's excess is what its examples lie above the means of theirs. Page's cumulative sum
(Continuous Inspection Schemes, 1954) of these excesses, in units of their mean absolute deviation, tells a rise and
since when it is: it grows by what an excess has above `watch.deviations`, and never falls below 0. It crosses
`watch.threshold` when a dozen steps in a row stand out, however a single one does. The gradient's norm depends on the
levels as well, and is not known by quartile, so it is only looked at for being finite.
"""

import math
from typing import NamedTuple

import numpy as np

ON_NOT_FINITE = ("stop", "skip", "rollback")
ON_RISE = ("off", "warn", "rollback")

# Noise levels are told apart by quartile, 0 the cleanest.
QUARTILES = 4

# A step is applied where all of these are finite.
FINITE = ("loss", "gradient_norm", "update_norm")

# An excess counts no more than this many deviations, and a deviation no less than this (of a log loss: 5 %).
_MOST, _LEAST_DEVIATION = 4.0, 0.05

BEGIN_ANEW = "begin anew in another --workdir with a lower optimizer.learning_rate or with optimizer.clip"


class Verdict(NamedTuple):
    """What is to be done after a window of steps.

    Attributes:
      action: "go on", "stop" or "rollback".
      reasons: what was seen, a sentence each.
      steps: those that a rollback leaves out from then on.
      not_finite: those whose loss or gradient was not finite.
      stats: the statistics after the window, where the run goes on.
    """

    action: str
    reasons: list[str]
    steps: list[int]
    not_finite: list[int]
    stats: dict


def start(rectify=None) -> dict:
    """Statistics that have seen no step; JSON, as checkpoints hold them.

    seen: steps; counts, means: by quartile, steps and mean log loss; deviation: the mean of excesses' absolute values;
    sum: Page's; since: the step at which it left 0; in_a_row: steps that were not finite; rectify: whether the
    objective's start had come.
    """
    by_quartile = {"counts": [0] * QUARTILES, "means": [0.0] * QUARTILES}
    return {"rectify": rectify, "seen": 0, **by_quartile, "deviation": 0.0, "sum": 0.0, "since": 0, "in_a_row": 0}


def is_finite(metrics: dict) -> bool:
    """Whether the train step applied the update that these metrics are of."""
    # Metrics that a checkpoint of an earlier version has kept may lack one.
    return all(np.isfinite(metrics[name]) for name in FINITE if name in metrics)


def follow(stats: dict, step: int, metrics: dict, rectify: bool, settings) -> tuple[dict, str | None]:
    """(statistics after a finite step, what to say of the loss if it has risen).

    They begin anew where the objective changes, after which losses are others.
    """
    if stats["rectify"] != rectify:
        stats = start(rectify)
    counts, means = list(stats["counts"]), list(stats["means"])
    seen, deviation = stats["seen"] + 1, max(stats["deviation"], _LEAST_DEVIATION)
    warm = seen > settings.warmup
    excess = examples = 0.0
    for quartile, (total, number) in enumerate(zip(metrics["level_losses"], metrics["level_counts"], strict=True)):
        if number:
            log_loss = math.log(max(float(total) / float(number), 1e-30))
            above = log_loss - means[quartile] if counts[quartile] else 0.0
            excess, examples = excess + float(number) * above, examples + float(number)
            rate = _rate(counts[quartile], settings.memory)
            bounded = max(-_MOST * deviation, min(above, _MOST * deviation)) if warm else above
            means[quartile] = means[quartile] + rate * bounded if counts[quartile] else log_loss
            counts[quartile] += 1
    excess /= max(examples, 1.0)

    total, since = 0.0, step
    if warm:
        total = max(0.0, stats["sum"] + min(excess / deviation, _MOST) - settings.deviations)
        since = stats["since"] if stats["sum"] and total else step
    size = min(abs(excess), _MOST * deviation) if warm else abs(excess)
    deviation = stats["deviation"] + _rate(stats["seen"], settings.memory) * (size - stats["deviation"])
    stats = {"rectify": rectify, "seen": seen, "counts": counts, "means": means, "deviation": deviation}
    stats |= {"sum": total, "since": since, "in_a_row": 0}
    if total <= settings.threshold:
        return stats, None
    return stats, f"the loss has risen since step {since}, at step {step} to {math.exp(excess):.2g} times what is usual"


def _rate(seen, memory):
    """How much a running mean takes of a new value: early on less is remembered, as early losses fall fast."""
    return 1 / min(1 + seen / 4, memory)


def examine(stats: dict, window: list, last: int, rectifies, settings) -> Verdict:
    """What to do after the steps up to `last`.

    Args:
      stats: the statistics before these steps.
      window: the metrics of each, on the host; None for a step that was skipped.
      rectifies: `step -> bool`, whether the objective's start had come.
      settings: `config.watch`.
    """
    reasons, steps, not_finite = [], [], []
    for step, metrics in enumerate(window, last - len(window) + 1):
        if metrics is None:
            continue
        if not is_finite(metrics):
            not_finite.append(step)
            loss, norm = metrics["loss"], metrics["gradient_norm"]
            reasons.append(f"step {step}: loss {loss}, gradient norm {norm}: not finite, and not applied")
            stats = stats | {"in_a_row": stats["in_a_row"] + 1}
            if settings.not_finite == "stop":
                go_on = (
                    "to go on without this step repeat the command with --config.watch.not_finite=skip (or rollback)"
                )
                return Verdict(
                    "stop", [*reasons, f"look at the pictures; {go_on}, or {BEGIN_ANEW}"], [], not_finite, stats
                )
            if stats["in_a_row"] >= settings.limit:
                in_a_row = (
                    f"{stats['in_a_row']} steps in a row (watch.limit): not the pictures but the weights are at fault"
                )
                return Verdict("stop", [*reasons, f"{in_a_row}; {BEGIN_ANEW}"], [], not_finite, stats)
            continue
        stats, risen = follow(stats, step, metrics, rectifies(step), settings)
        if risen is None:
            continue
        if settings.rise != "off":
            reasons.append(f"step {step}: {risen}")
        if settings.rise == "rollback":
            # The first to stand out saw what the step before it did to the weights.
            steps.extend(range(max(stats["since"] - 1, 1), step + 1))
            break
        # Said once: from now on this is what is usual.
        stats = start(stats["rectify"])
    if settings.not_finite == "rollback":
        steps.extend(not_finite)
    return Verdict("rollback" if steps else "go on", reasons, sorted(set(steps)), not_finite, stats)

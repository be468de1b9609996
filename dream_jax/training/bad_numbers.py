"""Numbers that go wrong: a loss or gradient that is not finite, and a loss that rises and stays up, as in a collapse.

These are functions of the steps' metrics alone, so all processes, and a repeated run, come to the same result. Steps
are counted from 1: step n makes the state of n updates from that of n - 1.

How large a loss is depends mostly on the noise levels that were drawn. So each quartile of the levels has a running
mean of its log loss, and the excess of a step is how far the losses of its examples lie above the means of their
quartiles. A rise shows in Page's cumulative sum (Continuous Inspection Schemes, 1954) of the excesses, in units of
their mean absolute deviation: each step adds its excess minus `watch.deviations`, and the sum never falls below 0. A
rise is a sum above `watch.threshold`. A dozen steps in a row with a high loss bring it there, and one step alone never
does. The norm of the gradient depends on the levels too, but is not known by quartile, so it must only be finite.
"""

import math
from typing import NamedTuple

import numpy as np

# Losses are kept by quartile of the noise levels, the cleanest first.
QUARTILES = 4

# A step is applied where all of these metrics are finite.
FINITE = ("loss", "gradient_norm", "update_norm")

# An excess counts as at most so many deviations, and a deviation as at least so much (of a log loss: 5 %).
_MOST, _LEAST_DEVIATION = 4.0, 0.05

BEGIN_ANEW = (
    "begin anew in another --workdir with a lower --config.optimizer.learning_rate or with --config.optimizer.clip=1, "
    "from the last good weights: --init_from THIS_WORKDIR (--checkpoint STEP for an older one)"
)


class Verdict(NamedTuple):
    """What to do after a window of steps.

    Attributes:
      action: "go on", "stop" or "rollback".
      reasons: what was found, a sentence each.
      steps: the steps that a rollback leaves out from then on.
      not_finite: the steps whose loss, gradient or update was not finite.
      stats: the statistics after the window, for a run that goes on.
    """

    action: str
    reasons: list[str]
    steps: list[int]
    not_finite: list[int]
    stats: dict


def start(rectify: bool | None = None) -> dict:
    """Statistics before any step, as checkpoints hold them in JSON.

    seen: number of steps; counts, means: by quartile, the number of steps and the mean log loss; deviation: the mean
    absolute value of the excesses; sum: Page's; since: the step at which it left 0; in_a_row: the number of steps in a
    row, up to now, that were not finite; rectify: whether the objective rectified in these steps.
    """
    by_quartile = {"counts": [0] * QUARTILES, "means": [0.0] * QUARTILES}
    return {"rectify": rectify, "seen": 0, **by_quartile, "deviation": 0.0, "sum": 0.0, "since": 0, "in_a_row": 0}


def is_finite(metrics: dict) -> bool:
    """Whether the train step applied the update that these metrics are of."""
    # Metrics that a checkpoint of an earlier version has kept may lack one.
    return all(np.isfinite(metrics[name]) for name in FINITE if name in metrics)


def follow(stats: dict, step: int, metrics: dict, rectify: bool, settings) -> tuple[dict, str | None]:
    """(statistics after a finite step, what to say of the loss if it has risen).

    The statistics begin anew where rectification begins or ends, because the losses change there.
    """
    if stats["rectify"] != rectify:
        stats = start(rectify)
    warm = stats["seen"] + 1 > settings.warmup
    deviation = max(stats["deviation"], _LEAST_DEVIATION)
    most = _MOST * deviation if warm else math.inf
    excess, counts, means = _excess(stats, metrics, most, settings.memory)

    total, since = 0.0, step
    if warm:
        total = max(0.0, stats["sum"] + min(excess / deviation, _MOST) - settings.deviations)
        since = stats["since"] if stats["sum"] and total else step
    change = _rate(stats["seen"], settings.memory) * (min(abs(excess), most) - stats["deviation"])
    stats = {
        "rectify": rectify,
        "seen": stats["seen"] + 1,
        "counts": counts,
        "means": means,
        "deviation": stats["deviation"] + change,
        "sum": total,
        "since": since,
        "in_a_row": 0,
    }
    if total <= settings.threshold:
        return stats, None
    return stats, f"the loss has risen since step {since}, at step {step} to {math.exp(excess):.2g} times what is usual"


def _excess(stats, metrics, most, memory):
    """A step's excess, and by quartile the numbers of steps and the means after it, which move by `most` at most."""
    counts, means = list(stats["counts"]), list(stats["means"])
    excess = examples = 0.0
    for quartile, (total, number) in enumerate(zip(metrics["level_losses"], metrics["level_counts"], strict=True)):
        if number:
            log_loss = math.log(max(float(total) / float(number), 1e-30))
            above = log_loss - means[quartile] if counts[quartile] else 0.0
            excess, examples = excess + float(number) * above, examples + float(number)
            moved = means[quartile] + _rate(counts[quartile], memory) * max(-most, min(above, most))
            means[quartile] = moved if counts[quartile] else log_loss
            counts[quartile] += 1
    return excess / max(examples, 1.0), counts, means


def _rate(seen, memory):
    """The weight of a new value in a running mean: large at first, because early losses fall fast."""
    return 1 / min(1 + seen / 4, memory)


def examine(stats: dict, window: list, last: int, rectifies, settings) -> Verdict:
    """What to do after the steps up to `last`.

    Args:
      stats: the statistics before these steps.
      window: the metrics of each step, on the host; None for a step that was left out.
      rectifies: `step -> bool`, whether the objective rectifies in a step.
      settings: `config.watch`.
    """
    reasons, steps, not_finite = [], [], []
    for step, metrics in enumerate(window, last - len(window) + 1):
        if metrics is None:
            continue
        if not is_finite(metrics):
            not_finite.append(step)
            reasons.append(f"step {step}: {_what_is_not(metrics)} not finite, and the step not applied")
            stats = stats | {"in_a_row": stats["in_a_row"] + 1}
            if advice := _why_to_stop(stats["in_a_row"], settings):
                return Verdict("stop", [*reasons, advice], [], not_finite, stats)
            continue
        stats, risen = follow(stats, step, metrics, rectifies(step), settings)
        if risen is None:
            continue
        if settings.rise != "off":
            reasons.append(f"step {step}: {risen}")
        if settings.rise == "rollback":
            # The step before the first high loss is the one that changed the weights.
            steps.extend(range(max(stats["since"] - 1, 1), step + 1))
            break
        # The person is told once: from now on this loss is the usual one.
        stats = start(stats["rectify"])
    if settings.not_finite == "rollback":
        steps.extend(not_finite)
    return Verdict("rollback" if steps else "go on", reasons, sorted(set(steps)), not_finite, stats)


def _what_is_not(metrics):
    """Which of a step's numbers are not finite, beside those that are."""
    known = {name.replace("_", " "): metrics[name] for name in FINITE if name in metrics}
    bad = [f"{name} {value}" for name, value in known.items() if not np.isfinite(value)]
    good = [f"{name} {value:.4g}" for name, value in known.items() if np.isfinite(value)]
    return ", ".join(bad) + (f" (with {', '.join(good)})" if good else "") + (" is" if len(bad) == 1 else " are")


def _why_to_stop(in_a_row, settings):
    """What to tell the person after so many steps in a row that were not finite; None where the run goes on."""
    if settings.not_finite == "stop":
        go_on = "to go on without this step repeat the command with --config.watch.not_finite=skip (or rollback)"
        return f"look at the pictures; {go_on}, or {BEGIN_ANEW}"
    if in_a_row >= settings.limit:
        at_fault = "not the pictures but the weights are at fault"
        return f"{in_a_row} steps in a row (watch.limit): {at_fault}; {BEGIN_ANEW}"
    return None

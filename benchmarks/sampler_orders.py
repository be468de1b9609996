"""The order of convergence of every sampler, on distributions whose solutions are known exactly.

    python -m benchmarks.sampler_orders

runs the samplers' tables in float64 on scalar data, a Gaussian and a mixture of three, whose probability-flow ODE keeps
the quantile of each point. Levels are equally spaced in logsnr from -10 to 4, so that the last is above zero. The slope
of the error over 48 to 384 evaluations is the observed order; for the stochastic samplers it is that of the error of
the Gaussian's standard deviation. Prints tables and writes them to benchmarks/results/.
Takes seconds, and what requirements-dev.txt installs.
"""

import functools
import sys

import numpy as np

from benchmarks import exact, report
from dream_jax import samplers

COUNTS = (48, 96, 192, 384)
KINDS = ("eps", "x0", "v")
STOCHASTIC = {
    "ddpm": "ddpm",
    "ddim, eta 0.5": functools.partial(samplers.ddim, eta=0.5),
    "ddim, eta 1": functools.partial(samplers.ddim, eta=1.0),
    "resshift": "resshift",
    "resfusion": "resfusion",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
}


def deterministic() -> list[dict]:
    rows = []
    for name in exact.DETERMINISTIC:
        row = {"sampler": name, "order": exact.ORDERS[name]}
        for title, data in (("gaussian", exact.GAUSSIAN), ("mixture", exact.MIXTURE)):
            for kind in KINDS:
                errors = exact.errors(name, data, exact.even, COUNTS, kind)
                row[f"{title} {kind}"] = exact.slope(COUNTS, errors)
        late = exact.errors(name, exact.MIXTURE, functools.partial(exact.even, first=-1.0), COUNTS)
        steps = exact.errors(name, exact.MIXTURE, uneven, COUNTS)
        row |= {"first": errors[0], "last": errors[-1]}
        row |= {"from logsnr -2": exact.slope(COUNTS, late), "uneven": exact.slope(COUNTS, steps)}
        rows.append(row)
    return rows


def uneven(count: int):
    """Half-logsnrs whose steps are as 1, 1, 2, 1, 1, 2, ..."""
    steps = np.tile([1.0, 1.0, 2.0], count // 3)
    return -5 + 7 * np.concatenate([[0], np.cumsum(steps) / steps.sum()])


def stochastic() -> list[dict]:
    rows = []
    for name, sampler in STOCHASTIC.items():
        errors = []
        for count in (32, 64, 128, 256):
            levels = exact.levels_at(exact.even(count, first=-7.0))
            found = exact.moments(samplers.make_rows(sampler, levels), exact.GAUSSIAN.denoise())
            mean, deviation = exact.GAUSSIAN.means[0], exact.GAUSSIAN.deviations[0]
            truth = mean * levels.alpha[-1], np.hypot(deviation * levels.alpha[-1], levels.sigma[-1])
            errors.append(np.abs(np.subtract(found, truth)))
        slope = exact.slope((32, 64, 128, 256), [error[1] for error in errors])
        rows.append({"sampler": name, "slope": slope, "mean": errors[-1][0], "deviation": errors[-1][1]})
    return rows


def main() -> int:
    rows, random = deterministic(), stochastic()
    versions = report.versions("numpy")
    slopes = [f"{title} {kind}" for title in ("gaussian", "mixture") for kind in KINDS]
    extra = ["from logsnr -2", "uneven"]
    table = "\n".join(
        f"| {row['sampler']} | {row['order']} | {' | '.join(f'{row[name]:.2f}' for name in slopes)} | "
        f"{row['first']:.1e}, {row['last']:.1e} | {' | '.join(f'{row[name]:.2f}' for name in extra)} |"
        for row in rows
    )
    noisy = "\n".join(f"| {r['sampler']} | {r['slope']:.2f} | {r['deviation']:.1e} | {r['mean']:.1e} |" for r in random)
    text = f"""# Orders of convergence

`python -m benchmarks.sampler_orders`: {report.listed(versions)}, float64.

Slope of the largest error at the end over 48, 96, 192 and 384 evaluations, equal steps of logsnr from -10 to 4, for a
Gaussian and a mixture of three, and networks that predict eps, x0 and v. Then the mixture's errors at 48 and 384, and
its slopes when sampling begins at logsnr -2, where the first move's error of second order is no longer small, and when
steps alternate as 1, 1, 2.

| sampler | order | Gaussian, eps | x0 | v | mixture, eps | x0 | v | its errors | from -2 | uneven |
|---|---|---|---|---|---|---|---|---|---|---|
{table}

Stochastic samplers on the Gaussian, from logsnr -14, 32 to 256 evaluations: the slope of the standard deviation's
error, and the errors of deviation and mean at 256.

| sampler | slope | deviation | mean |
|---|---|---|---|
{noisy}
"""
    record = {"versions": versions, "counts": COUNTS, "deterministic": rows, "stochastic": random}
    report.write("sampler_orders", text, record)
    return int(any(row[name] < row["order"] - 0.25 for row in rows for name in slopes))


if __name__ == "__main__":
    sys.exit(main())

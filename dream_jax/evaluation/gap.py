"""The training-sampling gap: how far a sampler's own inputs are from those that the network was trained on.

DREAM is about this gap (arXiv 2312.00210, section 3.2): training shows the network `alpha x0 + sigma eps`, while the
sampler shows it points that it made itself, with the errors of all evaluations before.

A perfect network's samples are other pictures than the originals, as good as they. So its error against the one
original is larger while sampling than in training, and falls where all answers are drawn towards their mean. What is
measured here is what a perfect network passes: `measure` names what it is then.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from dream_jax import diffusion, samplers, sampling
from dream_jax.data.indexed import Pair
from dream_jax.evaluation import plots, two_sample
from dream_jax.evaluation.inputs import Inputs, check_models, make_inputs
from dream_jax.evaluation.plots import Panel
from dream_jax.files import atomic
from dream_jax.files.names import set_aside
from dream_jax.inference import drawing
from dream_jax.inference.drawing import Model
from dream_jax.metrics import lpips, weights
from dream_jax.metrics.perceptual import NETS
from dream_jax.runtime import compiler
from dream_jax.training import integrity

PANELS = (
    Panel("mean square of the predicted noise", "eps_hat_square_training", "eps_hat_square_sampling", False),
    Panel("ratio of that, sampling to training (perfect: 1)", None, "eps_hat_square_ratio", False),
    Panel("variance of x_t over pixels", "x_variance_training", "x_variance_sampling", True),
    Panel("energy distance of x_t, sampling to training (perfect: 0)", None, "x_distance", False),
    Panel("slope of x0 on its prediction in training (perfect: 1)", None, "x0_slope", False),
    Panel("slope of eps on its prediction in training (perfect: 1)", None, "eps_slope", False),
    Panel("discrepancy: MSE of x0_hat to the original", "x0_error_training", "x0_error_sampling", True),
    Panel("discrepancy: LPIPS of x0_hat to the original", "x0_lpips_training", "x0_lpips_sampling", False),
)

# Columns of the printed table and their formats; those that a record lacks are left out.
COLUMNS = {
    "logsnr": ".2f",
    **dict.fromkeys(("eps_hat_square_training", "eps_hat_square_sampling"), ".4f"),
    **dict.fromkeys(("eps_hat_square_ratio", "x_variance_ratio"), ".3f"),
    "x_distance_p": ".2f",
    **dict.fromkeys(("x0_slope", "eps_slope"), ".3f"),
    **dict.fromkeys(("x0_error_training", "x0_error_sampling"), ".4f"),
}

# Directions along which sets of x_t are compared.
_DIRECTIONS = 64


def measure(models: dict[str, Model], pictures: np.ndarray | Pair, console: Console) -> dict:
    """Measures the gap on pictures, along the first of `evaluation.samplers` at its most steps.

    The pictures are levels [N, H, W, C], or an `indexed.Pair` of such.

    There is a row for each network evaluation, at whose noise level two inputs are compared: the sampler's own x
    ("sampling"), and `alpha x0 + sigma eps` of the same picture ("training"). What a perfect network has is in
    brackets; means are over pixels and pictures.

    - `eps_hat_square`, of the square of `eps_hat`: the noise that the constrained x0_hat implies; its ratio [1];
    - `x_variance`, of the variance of x over a picture's pixels; its ratio [1];
    - `x_distance`, the energy distance between the two sets of x, without bias [0], and `x_distance_p`, the share of
      random divisions of both sets that are as far apart [uniform in 0 .. 1];
    - `x0_slope` and `eps_slope`, of training inputs: the regression of the truth on its prediction [1]. Above 1 the
      predictions are drawn towards their mean;
    - `x0_error`: the discrepancy of the paper's Figure 3, the mean square of `x0_hat - x0`, with its standard deviation
      over pictures, and with `evaluation.learned` also their LPIPS, `x0_lpips` [falls with the bias above, and is
      larger while sampling].

    Returns:
      The result file's content: for each model rows by level, and

      - `gap`, the geometric mean of the ratio of `eps_hat`'s squares over the levels [1];
      - `variance`, of the sampled x0 over that of the originals, over a picture's pixels [1];
      - `spectrum`, the same by octaves of frequency, the lowest first [1 each];
      - `discrepancy`, the geometric mean of the ratio of `x0_error`, for models with originals.
    """
    note = check_models(models)
    first = next(iter(models.values())).experiment.config.evaluation
    sampler, steps, seed = first.samplers[0], max(first.steps), first.seeds[0]
    networks = {name: weights.load(name, first.weights)[0] for name in first.learned if name.startswith("lpips")}
    inputs = make_inputs(next(iter(models.values())).experiment, pictures)
    count = len(inputs.pictures)
    record = {
        "protocol": "gap",
        "sampler": sampler,
        "steps": steps,
        "seed": seed,
        "pictures": count,
        "crop": inputs.pictures.shape[1],
        "notes": [note] if note else [],
        "models": {},
    }
    with drawing.progress_bar(console) as bar:
        job = bar.add_task("measuring the gap", total=len(models) * count)
        for name, model in models.items():
            facts = _facts(model, inputs, sampler, steps, seed, networks, lambda n: bar.advance(job, n))
            record["models"][name] = {
                "workdir": model.workdir,
                "step": model.step,
                "sha256": integrity.digest(model.params),
                **_summary(model, facts, sampler, steps),
            }
    record["step"] = next(iter(models.values())).step
    return record


def _facts(
    model: Model, inputs: Inputs, sampler: str, steps: int, seed: int, networks: dict, advance: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """{name: [steps, N, ...]} of all pictures; spectra [N, octaves] of originals and samples."""
    built, key = model.experiment, drawing.make_key(seed)
    batch_size = built.config.evaluation.batch_size
    rows = drawing.make_rows(built, sampler, steps)

    @functools.partial(jax.jit, compiler_options=compiler.options(built.config.deterministic))
    def facts_of(params, networks, picture, given, index):
        original = built.task.to_float(picture)
        x0 = built.task.encode(original, given["cond"])
        denoise = drawing.make_denoise(built, params, given)
        directions = two_sample.directions(x0[0].size, _DIRECTIONS)

        def mean(z):
            return jnp.mean(z, axis=(1, 2, 3))

        def observe(x, x0_hat, alpha, sigma):
            eps_hat = diffusion.to_eps("x0", x0_hat, x, alpha, sigma)
            facts = {"eps_hat_square": mean(eps_hat**2), "x_variance": jnp.var(x, axis=(1, 2, 3))}
            facts["x_projected"] = x.reshape(len(x), -1) @ directions
            if built.task.paired:
                facts["x0_error"] = mean((x0_hat - x0) ** 2)
                seen = _rgb(built.task.to_picture(x0_hat, given["cond"]))
                for name, values in networks.items():
                    (net,) = (net for net in NETS if name.endswith(net))
                    facts["x0_lpips"] = lpips(values, seen, _rgb(original), net=net)
            return facts

        def at_training(level):
            number, alpha, sigma = level
            # Other noise than the sampler's, whose rows are numbered below.
            eps = sampling.noise(key, index, steps + number, x0.shape)
            x = diffusion.add_noise(x0, eps, alpha, sigma)
            x0_hat = denoise(x, alpha, sigma)
            facts = observe(x, x0_hat, alpha, sigma)
            eps_hat = diffusion.to_eps("x0", x0_hat, x, alpha, sigma)
            for name, truth, predicted in (("x0", x0, x0_hat), ("eps", eps, eps_hat)):
                parts = mean(truth), mean(predicted), mean(truth * predicted), mean(predicted**2)
                facts[f"{name}_moments"] = jnp.stack(parts, -1)
            return facts

        start, shows = drawing.start_key_of(built), built.objective.self_conditions
        drawn, sampled = sampling.run(key, denoise, x0.shape, rows, index, start, observe, shows)
        trained = jax.lax.map(at_training, (jnp.arange(steps), jnp.asarray(rows.alpha), jnp.asarray(rows.sigma)))
        facts = {
            f"{name}_{where}": f[name] for where, f in (("sampling", sampled), ("training", trained)) for name in f
        }
        return facts | {
            f"spectrum_{what}": two_sample.spectrum(x)[None] for what, x in (("data", x0), ("drawn", drawn))
        }

    parts = []
    for chosen, count in drawing.batches(len(inputs.pictures), batch_size):
        given = {name: array[chosen] for name, array in inputs.given.items()}
        facts = jax.device_get(facts_of(model.params, networks, inputs.pictures[chosen], given, chosen))
        parts.append({name: values[:, :count] for name, values in facts.items()})
        advance(count)
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _rgb(pictures):
    """Grey [B, H, W, 1] as networks of photographs want it: three equal channels."""
    return jnp.repeat(pictures, 3, -1) if pictures.shape[-1] == 1 else pictures


def _summary(model, facts, sampler, steps):
    data, drawn = (facts[f"spectrum_{what}"][0].mean(0) for what in ("data", "drawn"))
    rows = _rows(model, facts, sampler, steps)
    summary = {
        "gap": _geometric_mean(row["eps_hat_square_ratio"] for row in rows),
        # The bands share out a picture's variance.
        "variance": float(drawn.sum() / data.sum()),
        "spectrum": (drawn / np.maximum(data, 1e-20)).tolist(),
    }
    if model.experiment.task.paired:
        summary["discrepancy"] = _geometric_mean(row["x0_error_ratio"] for row in rows)
    return summary | {"rows": rows}


def _geometric_mean(values):
    return float(np.exp(np.mean(np.log(list(values)))))


def _rows(model: Model, facts: dict[str, np.ndarray], sampler: str, steps: int) -> list[dict]:
    levels = drawing.make_rows(model.experiment, sampler, steps)
    of_pictures = [name for name, values in facts.items() if values.ndim == 2]
    rows = []
    for number in range(steps):
        alpha, sigma = float(levels.alpha[number]), float(levels.sigma[number])
        lam = float(np.log(alpha / sigma)) if alpha > 0 else samplers.LOWEST
        row = {"evaluation": number + 1, "alpha": alpha, "sigma": sigma, "logsnr": 2 * lam}
        for name in of_pictures:
            row[name] = float(np.mean(facts[name][number]))
            if name.startswith(("x0_error", "x0_lpips")):
                row[f"{name}_spread"] = float(np.std(facts[name][number]))
        for name in ("eps_hat_square", "x_variance", "x0_error"):
            if f"{name}_sampling" in row:
                row[f"{name}_ratio"] = row[f"{name}_sampling"] / max(row[f"{name}_training"], 1e-20)
        sets = (facts[f"x_projected_{where}"][number] for where in ("sampling", "training"))
        row["x_distance"], row["x_distance_p"] = two_sample.energy_test(*sets)
        for name in ("x0", "eps"):
            truth, predicted, product, square = facts[f"{name}_moments_training"][number].mean(0, dtype=float)
            row[f"{name}_slope"] = float((product - truth * predicted) / max(square - predicted**2, 1e-20))
        rows.append(row)
    return rows


def panels_of(record: dict) -> list[Panel]:
    """Those of PANELS that were measured."""
    row = next(iter(record["models"].values()))["rows"][0]
    return [panel for panel in PANELS if panel.sampling in row]


def show(record: dict, console: Console) -> None:
    """Prints at most a dozen levels of the result file's table."""
    for name, model in record["models"].items():
        rows = model["rows"]
        title = f"{name}: {record['sampler']} {record['steps']}, {record['pictures']} pictures; gap {model['gap']:.3f}"
        title += f", variance {model['variance']:.3f}"
        table = Table(title=title)
        columns = {column: digits for column, digits in COLUMNS.items() if column in rows[0]}
        for column in columns:
            table.add_column(column.replace("_", " "), justify="right")
        for number in sorted(set(np.linspace(0, len(rows) - 1, 12).astype(int).tolist())):
            table.add_row(*(format(rows[number][column], digits) for column, digits in columns.items()))
        console.print(table)


def write(record: dict, path: Path, overwrite: bool) -> None:
    """Writes PATH (JSON), and a table (CSV) and plot (PNG) beside it; earlier ones are kept unless overwrite."""
    table, plot = path.with_suffix(".csv"), path.with_suffix(".png")
    if not overwrite:
        set_aside(path, (path, table, plot))
    rows = [{"model": name, **row} for name, model in record["models"].items() for row in model["rows"]]
    atomic.write_csv(table, rows)
    plots.gap(record, panels_of(record), plot)
    atomic.write_json(path, record)

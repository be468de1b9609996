"""The training-sampling gap: how far a sampler's own inputs are from those that the network was trained on.

DREAM is about this gap (arXiv 2312.00210, section 3.1): training shows the network `alpha x0 + sigma eps`, while the
sampler shows it points that it made itself, with the errors of all evaluations before.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from dream_jax import diffusion, sampling
from dream_jax.evaluation import plots
from dream_jax.evaluation.inputs import Inputs, check_models, make_inputs
from dream_jax.evaluation.plots import Panel
from dream_jax.files import atomic
from dream_jax.files.names import set_aside
from dream_jax.inference import drawing
from dream_jax.inference.drawing import Model
from dream_jax.runtime import compiler
from dream_jax.tasks import value_range

PANELS = (
    Panel("error of the predicted noise, mean square", "eps_error_training", "eps_error_sampling", True),
    Panel("ratio of that error, sampling to training", None, "eps_error_ratio", True),
    Panel("mean square of the noise in x_t (training: 1)", None, "noise_square_sampling", False),
    Panel("mean square of the predicted noise", "eps_hat_square_training", "eps_hat_square_sampling", False),
    Panel("variance of x_t over pixels", "x_variance_training", "x_variance_sampling", True),
)

# Columns of the printed table and their formats, for models with originals and for others.
_LEFT, _RIGHT = {"logsnr": ".2f"}, {"x_variance_training": ".3f", "x_variance_sampling": ".3f"}
_OF_ERRORS = {"eps_error_training": ".4f", "eps_error_sampling": ".4f", "eps_error_ratio": ".3f"}
_PAIRED = {**_LEFT, **_OF_ERRORS, "noise_square_sampling": ".4f", **_RIGHT}
_UNPAIRED = {**_LEFT, "eps_hat_square_training": ".4f", "eps_hat_square_sampling": ".4f", **_RIGHT}


def measure(models: dict[str, Model], pictures: np.ndarray, console: Console) -> dict:
    """Measures the gap on pictures uint8 [N, H, W, 3], along the first of `evaluation.samplers` at its most steps.

    There is a row for each network evaluation, at whose noise level two inputs are compared: the sampler's own x
    ("sampling"), and `alpha x0 + sigma eps` of the same picture ("training"). For both a row holds means, over pixels
    and pictures:

    - `eps_hat_square`, of the square of `eps_hat`: the noise that the sampler's constrained x0_hat implies;
    - `x_variance`, of the variance of x over a picture's pixels;
    - for super-resolution, whose x0 is known: `eps_error` and `noise_square`, of the squares of `eps_hat - eps` and of
      `eps`, where the sampler's eps is `(x - alpha x0) / sigma`.

    Returns:
      The result file's content: for each model rows by level, and `gap`, the geometric mean of the errors' ratio over
      the levels (of the ratio of `eps_hat`'s squares for unconditional models).
    """
    note = check_models(models)
    first = next(iter(models.values())).experiment.config.evaluation
    sampler, steps, seed = first.samplers[0], max(first.steps), first.seeds[0]
    record = {
        "protocol": "gap",
        "sampler": sampler,
        "steps": steps,
        "seed": seed,
        "pictures": len(pictures),
        "crop": pictures.shape[1],
        "notes": [note] if note else [],
        "models": {},
    }
    inputs = make_inputs(next(iter(models.values())).experiment, pictures)
    with drawing.progress_bar(console) as bar:
        job = bar.add_task("measuring the gap", total=len(models) * len(pictures))
        for name, model in models.items():
            facts = _facts(model, inputs, sampler, steps, seed, lambda n: bar.advance(job, n))
            rows = _rows(model, facts, sampler, steps)
            key = "eps_error_ratio" if "eps_error_ratio" in rows[0] else "eps_hat_square_ratio"
            record["models"][name] = {
                "workdir": model.workdir,
                "step": model.step,
                "sha256": drawing.digest(model.params),
                "gap": float(np.exp(np.mean([np.log(row[key]) for row in rows]))),
                "rows": rows,
            }
    record["step"] = next(iter(models.values())).step
    return record


def _facts(
    model: Model, inputs: Inputs, sampler: str, steps: int, seed: int, advance: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """{name: [steps, N]} of all pictures."""
    built, key = model.experiment, drawing.make_key(seed)
    batch_size = built.config.evaluation.batch_size
    rows = drawing.make_rows(built, sampler, steps)

    @functools.partial(jax.jit, compiler_options=compiler.options(built.config.deterministic))
    def facts_of(params, picture, given, index):
        x0 = built.task.encode(value_range.to_float(picture), given["cond"])
        denoise = drawing.make_denoise(built, params, given)

        def mean_square(z):
            return jnp.mean(z**2, axis=(1, 2, 3))

        def observe(x, x0_hat, alpha, sigma):
            eps_hat = diffusion.to_eps("x0", x0_hat, x, alpha, sigma)
            facts = {"eps_hat_square": mean_square(eps_hat), "x_variance": jnp.var(x, axis=(1, 2, 3))}
            if built.task.paired:
                eps = diffusion.to_eps("x0", x0, x, alpha, sigma)
                facts |= {"eps_error": mean_square(eps_hat - eps), "noise_square": mean_square(eps)}
            return facts

        def at_training(level):
            number, alpha, sigma = level
            # Other noise than the sampler's, whose rows are numbered below.
            eps = sampling.noise(key, index, steps + number, x0.shape)
            x = diffusion.add_noise(x0, eps, alpha, sigma)
            return observe(x, denoise(x, alpha, sigma), alpha, sigma)

        _, sampled = sampling.run(key, denoise, x0.shape, rows, index, drawing.start_key_of(built), observe)
        trained = jax.lax.map(at_training, (jnp.arange(steps), jnp.asarray(rows.alpha), jnp.asarray(rows.sigma)))
        return {f"{name}_{where}": f[name] for where, f in (("sampling", sampled), ("training", trained)) for name in f}

    parts = []
    for chosen, count in drawing.batches(len(inputs.pictures), batch_size):
        given = {name: array[chosen] for name, array in inputs.given.items()}
        facts = jax.device_get(facts_of(model.params, inputs.pictures[chosen], given, chosen))
        parts.append({name: values[:, :count] for name, values in facts.items()})
        advance(count)
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _rows(model: Model, facts: dict[str, np.ndarray], sampler: str, steps: int) -> list[dict]:
    levels = drawing.make_rows(model.experiment, sampler, steps)
    rows = []
    for number in range(steps):
        alpha, sigma = float(levels.alpha[number]), float(levels.sigma[number])
        row = {"evaluation": number + 1, "alpha": alpha, "sigma": sigma, "logsnr": 2 * float(np.log(alpha / sigma))}
        row |= {name: float(np.mean(values[number])) for name, values in facts.items()}
        for name in ("eps_error", "eps_hat_square"):
            if f"{name}_sampling" in row:
                row[f"{name}_ratio"] = row[f"{name}_sampling"] / max(row[f"{name}_training"], 1e-20)
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
        table = Table(title=title)
        columns = _PAIRED if "eps_error_ratio" in rows[0] else _UNPAIRED
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

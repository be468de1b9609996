"""Measures of trained models over held-out pictures, for each sampler, number of steps and seed."""

import contextlib
import functools
import hashlib
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from dream_jax import config, experiment, metrics, sampling
from dream_jax.data import held_out
from dream_jax.errors import UserError
from dream_jax.evaluation import plots
from dream_jax.files import atomic, grids, images
from dream_jax.files.names import set_aside
from dream_jax.inference import drawing
from dream_jax.inference.drawing import Model
from dream_jax.metrics import weights
from dream_jax.runtime import compiler
from dream_jax.tasks import value_range

STANDARD = {
    "psnr": "RGB, no border crop, dB, mean over pictures",
    "ssim": "RGB, Gaussian window 11 with sigma 1.5, mean over pictures",
    "consistency": "mean squared error in [0, 1] between the result, made small again, and its low-resolution picture",
    "mean_colour": "absolute difference of the mean colours, grey levels",
    "lpips": "pictures in [-1, 1]",
    "swd": "sliced Wasserstein distance of Laplacian pyramids' patches, times 1e3; it needs no network",
    "fid, kid, is": "Inception of pytorch-fid; 8-bit pictures against the held-out ones",
}
ABOUT_PROTOCOL = {
    "standard": STANDARD,
    "dream_official": STANDARD
    | {
        "consistency": f"{STANDARD['consistency']}, times 1e5",
        "lpips": "pictures in [0, 1] although the networks expect [-1, 1]; that code reports lpips_vgg",
        "fid, kid, is": f"{STANDARD['fid, kid, is']}; that code compares 100 with 100, which biases FID upwards",
    },
}
FEW = "fid from no more pictures than Inception's 2048 features compares only with that of as many pictures"

DIGITS = {"psnr": ".2f", "ssim": ".4f", "consistency": ".2e", "mean_colour": ".3f", "swd": ".2f", "fid": ".2f"}


def evaluate(models: dict[str, Model], pictures, console: Console, journal: Path | None = None) -> tuple[dict, dict]:
    """Evaluates `config.evaluation`, the first model's, on pictures uint8 [N, H, W, 3], for models of one task.

    Super-resolution is measured picture by picture, and as a set; generation as a set. The first row is the baseline:
    the low-resolution picture merely enlarged (named `bicubic`, after the task's kernel), or pictures trained on.

    Args:
      journal: a file that keeps finished rows, so that an evaluation that was stopped goes on after them.

    Returns:
      (record, columns): the result file's content, and pictures to look at, {label: uint8 [n, H, W, 3]}.
    """
    first = next(iter(models.values()))
    config, settings = first.experiment.config, first.experiment.config.evaluation
    data_note = check_models(models)
    measure = _Measures(first.experiment, pictures)
    lines = _Journal(journal)
    rows = [measure.baseline(first.experiment)]
    tasks = [(name, s, n) for name in models for s in settings.samplers for n in settings.steps]
    digests = {name: drawing.digest(model.params) for name, model in models.items()}
    drawers = {name: _Drawer(model, measure.inputs) for name, model in models.items()}
    looked_at = {}
    with drawing.progress_bar(console) as bar:
        job = bar.add_task("evaluating", total=len(tasks) * len(settings.seeds) * len(pictures))
        for name, sampler, steps in tasks:
            title = f"{sampler} {steps}" if len(models) == 1 else f"{name}: {sampler} {steps}"
            about = {"name": title, "model": name, "sampler": sampler, "steps": steps}
            key = _fingerprint(about, digests[name], measure.identity, models[name].experiment.config)
            if key not in lines.rows:
                bar.update(job, description=title)
                drawn = [drawers[name](sampler, steps, seed, lambda n: bar.advance(job, n)) for seed in settings.seeds]
                lines.add(key, about | measure(drawn))
                looked_at[name, sampler, steps] = drawn[0][: config.samples.count]
            else:
                bar.advance(job, len(settings.seeds) * len(pictures))
            rows.append(lines.rows[key])
        bar.update(job, description="evaluated")
    record = {
        "protocol": settings.protocol,
        "about_protocol": ABOUT_PROTOCOL[settings.protocol],
        "rows": rows,
        "models": {
            name: {"workdir": model.workdir, "step": model.step, "weights": "ema", "sha256": digests[name]}
            | {"sampling": model.experiment.config.sampling.to_dict()}
            for name, model in models.items()
        },
        "step": first.step,
        "pictures": len(pictures),
        "crop": pictures.shape[1],
        "seeds": list(settings.seeds),
        "learned": measure.about_learned,
    }
    few = FEW if "inception" in settings.learned and len(pictures) <= 2048 else None
    record["notes"] = [note for note in (data_note, few) if note]
    if first.experiment.task.paired:
        record |= {"scale": config.task.scale, "kernel": config.task.kernel}
    return record, _columns(models, drawers, looked_at, rows[1:], measure, config)


def check_models(models: dict[str, Model]) -> str | None:
    """Raises UserError where models cannot be measured side by side; returns what is to be known of their data."""
    configs = {name: model.experiment.config for name, model in models.items()}
    (first_name, first), *others = configs.items()
    for name, other in others:
        for key in ("task.name", "task.scale", "task.kernel"):
            ours, theirs = (config.flatten(c)[key] for c in (first, other))
            if ours != theirs:
                raise UserError(f"{first_name} and {name} cannot be compared: their {key} are {ours} and {theirs}")
    side = held_out.side_of(first)
    for name, model in models.items():
        divisor = model.experiment.network.divisor
        if side % divisor:
            raise UserError(f"evaluation.crop = {side}: it must divide by {divisor}, by which {name} downsamples")
        for sampler in first.evaluation.samplers:
            for steps in first.evaluation.steps:
                try:
                    drawing.make_rows(model.experiment, sampler, steps)
                except UserError as error:
                    raise UserError(f"{name}: {error}") from error
    where = [config.flatten(c.data) for c in configs.values()]
    keys = ("folder", "eval_folder", "eval_percent", "tfds", "train_split", "eval_split", "resize")
    if any(data[key] != where[0][key] for data in where for key in keys):
        return f"the held-out pictures are {first_name}'s; others have other data, and may have been trained on these"
    return None


class _Drawer:
    """Draws a model's pictures for the evaluation's inputs."""

    def __init__(self, model: Model, inputs: dict):
        self.model, self.inputs = model, inputs
        self.draw = drawing.make_draw(model.experiment, model.mesh)
        self.batch_size = model.experiment.config.evaluation.batch_size

    def __call__(self, sampler, steps, seed, advance=lambda count: None, count=None):
        rows = drawing.make_rows(self.model.experiment, sampler, steps)
        inputs = {name: array[:count] for name, array in self.inputs.items()}
        key, mesh = drawing.make_key(seed), self.model.mesh
        return drawing.draw_pictures(self.draw, self.model.params, inputs, rows, key, mesh, self.batch_size, advance)


class _Measures:
    """What is measured of drawn pictures against the held-out ones."""

    def __init__(self, built: experiment.Experiment, pictures):
        self.settings, self.kernel = built.config.evaluation, built.config.task.kernel
        self.pictures = pictures
        self.paired = built.task.paired
        if self.paired:
            self.low, cond, self.enlarged = drawing.degraded(built, pictures)
            # Models may or may not project, so that all get what projecting takes.
            self.inputs = {"cond": cond, "low": self.low}
        else:
            self.inputs = drawing.no_inputs(*pictures.shape[:3])
        loaded = {name: weights.load(name, self.settings.weights) for name in self.settings.learned}
        self.learned = {name: jax.device_put(values) for name, (values, _) in loaded.items()}
        self.about_learned = {name: about for name, (_, about) in loaded.items()}
        if "inception" in self.learned:
            if len(pictures) < 2:
                raise UserError("evaluation.learned: inception compares sets, and there is one held-out picture only")
            self.features, _ = metrics.inception_features(self.learned["inception"], pictures)
        self.identity = {
            "pictures": hashlib.sha256(np.ascontiguousarray(pictures)).hexdigest(),
            "learned": self.about_learned,
            "protocol": self.settings.protocol,
            "seeds": list(self.settings.seeds),
        }

    def baseline(self, built) -> dict:
        config = built.config
        if self.paired:
            return {"name": baseline_name(config), "model": None, "sampler": None, "steps": 0} | self([self.enlarged])
        trained_on = held_out.eval_pictures(config, "train")[: len(self.pictures)]
        return {"name": "training pictures", "model": None, "sampler": None, "steps": 0} | self([trained_on])

    def __call__(self, drawn: list) -> dict:
        """Means and, with several seeds, spreads (standard deviations) of drawn [seeds][N, H, W, 3]."""
        each = [self._one_seed(pictures) for pictures in drawn]
        values = {name: float(np.mean([seed[name] for seed in each])) for name in each[0]}
        if len(drawn) > 1:
            spread = {f"{name}_spread": float(np.std([seed[name] for seed in each], ddof=1)) for name in each[0]}
            values |= spread
            for name in self._lpips():
                values[f"{name}_diversity"] = self._diversity(name, drawn)
        return values

    def _lpips(self):
        return [name for name in self.learned if name.startswith("lpips") and self.paired]

    def _one_seed(self, drawn) -> dict:
        values = {}
        if self.paired:
            official = self.settings.protocol == "dream_official"
            per_picture = {
                "psnr": metrics.psnr,
                "ssim": metrics.ssim,
                "consistency": lambda a, b, low: metrics.consistency(a, low, self.kernel) * (1e5 if official else 1),
                "mean_colour": metrics.mean_colour_error,
            }
            for name in self._lpips():
                per_picture[name] = functools.partial(_lpips, self.learned[name], name, official)
            for name, measure in per_picture.items():
                arrays = (drawn, self.pictures, self.low) if name == "consistency" else (drawn, self.pictures)
                values[name] = float(np.mean(batched(measure, *arrays, size=self.settings.batch_size)))
        count = min(len(drawn), len(self.pictures))
        values["swd"] = metrics.sliced_wasserstein(drawn[:count], self.pictures[:count])
        if "inception" in self.learned:
            features, logits = metrics.inception_features(self.learned["inception"], drawn)
            with warnings.catch_warnings():
                # The record says it once for the whole table, see FEW.
                warnings.simplefilter("ignore", UserWarning)
                values["fid"] = float(metrics.frechet_distance(features, self.features))
            values["kid"] = float(metrics.kernel_distance(features, self.features))
            values["is"] = float(metrics.inception_score(logits, min(10, len(logits)))[0])
        return values

    def _diversity(self, name, drawn):
        net = name.removeprefix("lpips_")
        of_picture = (np.stack(samples) for samples in zip(*drawn, strict=True))
        scaled = (np.asarray(value_range.to_float(samples)) for samples in of_picture)
        return float(np.mean([metrics.lpips_diversity(self.learned[name], samples, net) for samples in scaled]))


def _lpips(values, name, official, a, b):
    # The official code forgets to bring its pictures from [0, 1] to [-1, 1].
    low, span = (0.0, 255.0) if official else (-1.0, 127.5)
    a, b = (jnp.asarray(z, jnp.float32) / span + low for z in (a, b))
    return metrics.lpips(values, a, b, name.removeprefix("lpips_"))


def batched(measure, *arrays, size: int):
    """`measure(*arrays)` [N] in batches of one size, the last of which is filled up."""
    chosen = drawing.batches(len(arrays[0]), size)
    return np.concatenate([np.asarray(measure(*(array[i] for array in arrays)))[:new] for i, new in chosen])


def _fingerprint(about, weights_digest, identity, config) -> str:
    what = {"row": about, "weights": weights_digest, "measured": identity, "sampling": config.sampling.to_dict()}
    what["compute_dtype"] = config.compute_dtype
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class _Journal:
    """Finished rows by fingerprint, kept in a file of JSON lines where there is one."""

    def __init__(self, path: Path | None):
        self.path, self.rows = path, {}
        for line in path.read_text().splitlines() if path is not None and path.exists() else []:
            # A line that a stop tore is computed again.
            with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
                entry = json.loads(line)
                self.rows[entry["key"]] = entry["row"]

    def add(self, key: str, row: dict) -> None:
        self.rows[key] = row
        if self.path is not None:
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            with open(self.path, "a") as file:
                file.write("\n" * torn + json.dumps({"key": key, "row": row}) + "\n")


def _columns(models, drawers, looked_at, rows, measure, config) -> dict:
    """For each model the fewest, the best and the most steps of its best sampler."""
    shown = min(config.samples.count, len(measure.pictures))
    seed = config.evaluation.seeds[0]
    columns = {}

    def merit(row):
        return row["psnr"] if measure.paired else -row["swd"]

    if measure.paired:
        columns = {"low resolution": measure.low[:shown], baseline_name(config): measure.enlarged[:shown]}
    for name, model in models.items():
        best = max((row for row in rows if row["model"] == name), key=merit)
        for steps in sorted({min(config.evaluation.steps), best["steps"], max(config.evaluation.steps)}):
            method = label(model.experiment.config, best["sampler"], steps)
            title = method if len(models) == 1 else f"{name}, {best['sampler']} {steps}"
            drawn = looked_at.get((name, best["sampler"], steps))
            # Rows that an earlier call finished have no pictures any more.
            columns[title] = drawers[name](best["sampler"], steps, seed, count=shown) if drawn is None else drawn
    return columns | {"original" if measure.paired else "held out": measure.pictures[:shown]}


def find_start(model: Model, pictures, candidates: int, console: Console) -> list[dict]:
    """Ranks starting noises that all pictures share: [{"start_seed", "psnr"}], the best first.

    Ma et al. 2023 (arXiv 2305.15357), section 4.2: for a deterministic sampler one starting noise, chosen on a few
    pictures, is good for others too. The pictures here should be such as were trained on. Takes the first of
    `evaluation.samplers` and of `evaluation.steps`.
    """
    built, settings = model.experiment, model.experiment.config.evaluation
    if not built.task.paired:
        raise UserError("a good starting noise is found for super-resolution, and this model is unconditional")
    low, cond, _ = drawing.degraded(built, pictures)
    rows = drawing.make_rows(built, settings.samplers[0], settings.steps[0])

    @functools.partial(jax.jit, compiler_options=compiler.options(built.config.deterministic))
    def drawn_from(params, inputs, start_key):
        denoise, shape = drawing.make_denoise(built, params, inputs), (*inputs["cond"].shape[:3], 3)
        x0 = sampling.run(drawing.make_key(settings.seeds[0]), denoise, shape, rows, start_key=start_key)
        return value_range.to_uint8(built.task.to_picture(x0, inputs["cond"]))

    ranking = []
    with drawing.progress_bar(console) as bar:
        for seed in bar.track(range(candidates), description=f"{settings.samplers[0]} {settings.steps[0]}"):

            def psnr(cond, low, pictures, seed=seed):
                drawn = drawn_from(model.params, {"cond": cond, "low": low}, drawing.make_key(seed))
                return metrics.psnr(drawn, pictures)

            scores = batched(psnr, cond, low, pictures, size=settings.batch_size)
            ranking.append({"start_seed": seed, "psnr": float(np.mean(scores))})
    return sorted(ranking, key=lambda entry: -entry["psnr"])


def comparison(built: experiment.Experiment, low, enlarged, results: dict, pictures) -> np.ndarray:
    """The grid `low resolution | bicubic | results | original`, uint8."""
    columns = {"low resolution": low, baseline_name(built.config): enlarged, **results, "original": pictures}
    return grids.grid(columns)


def baseline_name(config) -> str:
    """What the low-resolution picture merely enlarged is called in tables: bicubic, after the task's kernel."""
    return config.task.kernel.removeprefix("pil_")


def label(config, sampler: str, steps: int) -> str:
    """What the results of a model trained with this config are called in pictures."""
    off = config.objective.name == "standard" or (config.objective.name == "dream" and config.objective.p is None)
    return f"{'standard' if off else 'DREAM'}, {sampler} {steps} step{'s' if steps > 1 else ''}"


def measured(rows: list[dict]) -> list[str]:
    """The names of what was measured in a table's rows, in order."""
    about = ("name", "model", "sampler", "steps")
    names = dict.fromkeys(name for row in rows for name in row if not name.endswith("_spread"))
    return [name for name in names if name not in about]


def show(record: dict, console: Console) -> None:
    """Prints the result file's table."""
    rows, several = record["rows"], len(record["models"]) > 1
    scale = f", {record['scale']}x" if "scale" in record else ""
    seeds = f", {len(record['seeds'])} seeds: mean and spread" if len(record["seeds"]) > 1 else ""
    title = f"{record['pictures']} held-out pictures{scale}, EMA weights at step {record['step']}{seeds}"
    table = Table(title=title)
    names = measured(rows)
    titles = {"psnr": "PSNR dB", "ssim": "SSIM", "mean_colour": "colour", "swd": "SWD", "fid": "FID", "kid": "KID"}
    for heading in (*(["model"] if several else []), "", "steps"):
        table.add_column(heading, justify="right" if heading == "steps" else "left")
    for name in names:
        table.add_column(titles.get(name, name), justify="right")
    for row in rows:
        cells = [row["model"] or ""] if several else []
        cells += [row["sampler"] or row["name"], str(row["steps"]) if row["sampler"] else ""]
        for name in names:
            cell = format(row[name], DIGITS.get(name, ".4f")) if name in row else ""
            if f"{name}_spread" in row:
                cell += f" ± {row[f'{name}_spread']:.1g}"
            if name == "psnr" and row["sampler"]:
                cell += f" ({row[name] - rows[0][name]:+.2f})"
            cells.append(cell)
        table.add_row(*cells)
    console.print(table)
    for note in record["notes"]:
        console.print(f"note: {note}", markup=False)


def write(record: dict, columns: dict, path: Path, overwrite: bool) -> None:
    """Writes PATH (JSON) and the files beside it; earlier ones are kept under their step unless overwrite."""
    names = files(path)
    if not overwrite:
        set_aside(path, names.values())
    atomic.write_csv(record["rows"], names["csv"])
    images.write(names["pictures"], grids.grid(columns), overwrite=True)
    plots.metrics_against_steps(record, measured(record["rows"]), names["steps"])
    plots.perception_against_distortion(record, measured(record["rows"]), names["tradeoff"])
    atomic.write_json(record, path)


def files(path: Path) -> dict[str, Path]:
    """The files of a table at PATH (JSON): what each holds."""
    return {
        "table": path,
        "csv": path.with_suffix(".csv"),
        "pictures": path.with_suffix(".png"),
        "steps": path.with_name(f"{path.stem}-steps.png"),
        "tradeoff": path.with_name(f"{path.stem}-tradeoff.png"),
    }


def tell(path: Path, console: Console) -> None:
    """Says where the files of a table at PATH lie."""
    for what, file in files(path).items():
        if file.exists():
            console.print(f"{what}: {file}", markup=False)

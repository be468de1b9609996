"""A starting noise that all pictures share: which one of several is best."""

import functools

import jax
import numpy as np
from rich.console import Console

from dream_jax import metrics, sampling
from dream_jax.errors import UserError
from dream_jax.evaluation.inputs import make_inputs
from dream_jax.inference import drawing
from dream_jax.inference.drawing import Model
from dream_jax.runtime import compiler


def find_start(model: Model, pictures: np.ndarray, candidates: int, console: Console) -> list[dict]:
    """Ranks starting noises that all pictures share: [{"start_seed", "psnr"}], the best first.

    Ma et al. 2023 (arXiv 2305.15357), section 4.2: a deterministic sampler draws better pictures from some starting
    noises than from others, and one that is good for a few pictures is good for others too. The pictures, levels
    [N, H, W, C] or an `indexed.Pair`, should be such as were trained on. Takes the first of `evaluation.samplers` and
    of `evaluation.steps`.

    Raises UserError for models that restore no pictures.
    """
    built, settings = model.experiment, model.experiment.config.evaluation
    if not built.task.paired or built.task.measured_as != "picture":
        name = built.config.task.name
        raise UserError(f"a good starting noise is found for models that restore pictures, not for {name}")
    inputs = make_inputs(built, pictures)
    given, levels = inputs.given, inputs.pictures.dtype
    rows = drawing.make_rows(built, settings.samplers[0], settings.steps[0])

    @functools.partial(jax.jit, compiler_options=compiler.options(built.config.deterministic))
    def drawn_from(params, inputs, start_key):
        denoise = drawing.make_denoise(built, params, inputs)
        shape = (*inputs["cond"].shape[:3], built.task.x0_channels)
        key, shows = drawing.make_key(settings.seeds[0]), built.objective.self_conditions
        x0 = sampling.run(key, denoise, shape, rows, start_key=start_key, shows=shows)
        return built.task.to_levels(built.task.to_picture(x0, inputs["cond"]), levels)

    ranking = []
    with drawing.progress_bar(console) as bar:
        for seed in bar.track(range(candidates), description=f"{settings.samplers[0]} {settings.steps[0]}"):

            def psnr(pictures, *arrays, seed=seed):
                chosen = dict(zip(given, arrays, strict=True))
                return metrics.psnr(drawn_from(model.params, chosen, drawing.make_key(seed)), pictures)

            scores = metrics.in_batches(psnr, inputs.pictures, *given.values(), size=settings.batch_size)
            ranking.append({"start_seed": seed, "psnr": float(np.mean(scores))})
    return sorted(ranking, key=lambda entry: -entry["psnr"])

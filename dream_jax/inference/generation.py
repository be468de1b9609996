"""New pictures from a trained model that makes them from noise, of a class where it knows classes."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from dream_jax import __version__
from dream_jax.config.keys import KEYS
from dream_jax.errors import UserError
from dream_jax.files import atomic, grids, images
from dream_jax.files.names import check_folder
from dream_jax.files.numbers import SIXTEEN, Numbers
from dream_jax.files.picture import Picture, Reading
from dream_jax.inference import classes, drawing, trained
from dream_jax.training import integrity

# What the grid shows.
_SHOWN = 64
_AS_IT_IS = Reading(channels=None, bits=None)


def generate(
    workdir,
    output,
    count: int,
    console: Console,
    sampler: str = "ddim",
    steps: int = 50,
    seed: int = 0,
    batch_size: int = 16,
    overwrite: bool = False,
    overrides=(),
    checkpoint: str = "latest",
    size: str | None = None,
    wanted: str | None = None,
) -> None:
    """Draws pictures 0 .. count-1 of a seed into OUTPUT/pictures/NUMBER.png, with OUTPUT/grid.png of the first.

    Pictures of other bands than grey or RGB become NUMBER.tif.

    Picture i depends on (weights, sampling, size, seed, i) alone: a call that is repeated draws what is missing, and a
    larger count adds to what is there. OUTPUT/generation.json says what they are of.

    Args:
      sampler: a name in `sampling.SAMPLERS`; steps: network evaluations for each picture.
      batch_size: pictures drawn at once.
      overwrite: draw again what is there.
      overrides: `--config.KEY=VALUE` arguments, of `config.sampling` above all.
      checkpoint: latest, best or a step.
      size: HEIGHTxWIDTH in pixels, by default the side that was trained on.
      wanted: the classes of pictures, see `classes.parse`: picture i is of the i-th of these, which are gone through
        again and again; by default of every class in turn.

    Raises UserError, before anything is compiled, for a model that restores, impossible values, an output that
    cannot be written, or one that holds pictures of other weights, sampling or seed (unless overwrite).
    """
    output = Path(output)
    experiment = trained.open_experiment(workdir, overrides)
    if experiment.task.paired:
        raise UserError(f"{workdir}: this model restores pictures and makes none from nothing; use restore")
    _check_options(count, batch_size, seed)
    kinds = classes.parse(experiment, wanted)
    sides = drawing.sides_of(experiment, size)
    rows = drawing.make_rows(experiment, sampler, steps)
    check_folder(output / "pictures")
    path_of = functools.partial(_path, output / "pictures", experiment.task.channels)

    model = trained.load_weights(workdir, experiment, trained.step_of(workdir, experiment, checkpoint))
    asked = {"sampler": sampler, "steps": steps, "seed": seed, "count": count}
    # One number for a square, as records always had it.
    asked["size"] = sides[0] if len(set(sides)) == 1 else list(sides)
    if kinds:
        asked["classes"] = "all" if kinds == classes.parse(experiment) else kinds
    _claim(output, _about(model, asked), overwrite)
    missing = [i for i in range(count) if overwrite or not path_of(i).exists()]
    drawn = _draw(model, rows, seed, missing, batch_size, sides, kinds)
    _write_all(drawn, path_of, overwrite, count, len(missing), console)
    _write_grid(output / "grid.png", [path_of(i) for i in range(min(count, _SHOWN))])
    others = ", the others were there" if len(missing) < count else ""
    done = f"{len(missing)} of {count} drawn into {output}/pictures{others}; the first in {output}/grid.png"
    console.print(done, markup=False)


def _check_options(count, batch_size, seed):
    for name, value, least, most in (
        ("count", count, 1, 10**6),
        ("batch_size", batch_size, 1, 10**6),
        ("seed", seed, 0, 2**32 - 1),
    ):
        if not least <= value <= most:
            raise UserError(f"--{name} {value}: it must lie between {least} and {most}")


def _about(model, asked) -> dict:
    config = model.experiment.config
    return {
        "workdir": model.workdir,
        "step": model.step,
        "weights": model.weights,
        "sha256": integrity.digest(model.params),
        **asked,
        "sampling": config.sampling.to_dict(),
        "compute_dtype": config.compute_dtype,
        "version": __version__,
    }


def _draw(model, rows, seed, numbers, batch_size, sides, kinds):
    """Batches of pictures with these numbers: (numbers, uint8 [n, H, W, C])."""
    draw, key = drawing.make_draw(model.experiment, model.mesh), drawing.make_key(seed)
    for start in range(0, len(numbers), batch_size):
        chosen = np.array(numbers[start : start + batch_size])
        inputs = classes.inputs_of(model.experiment.task, chosen, sides, kinds)
        try:
            drawn = drawing.draw_pictures(draw, model.params, inputs, rows, key, model.mesh, batch_size, numbers=chosen)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"cannot be drawn; try a smaller --batch_size or --size ({reason})") from error
        yield chosen, drawn


def _path(folder, channels, number) -> Path:
    return folder / f"{number:06d}{'.png' if channels in (1, 3) else '.tif'}"


def _write_all(batches, path_of, overwrite, count, missing, console):
    with drawing.progress_bar(console) as bar:
        job = bar.add_task("generating", total=count, completed=count - missing)
        for numbers, drawn in batches:
            for number, picture in zip(numbers, drawn, strict=True):
                _write(path_of(number), picture, overwrite)
            bar.advance(job, len(numbers))


def _write_grid(path, pictures):
    images.write(path, grids.mosaic(np.stack([images.read(each, _AS_IT_IS) for each in pictures])), overwrite=True)


def _write(path, levels, overwrite):
    # Not `images.write`, which takes the last of two or four bands for transparency.
    numbers = Numbers() if levels.dtype == np.uint8 else SIXTEEN
    images.write_pages(path, [Picture(levels, numbers=numbers)], overwrite)


def _claim(output, about, overwrite):
    """Writes what the output's pictures are of, unless it holds others; with overwrite, others are deleted."""
    path, pictures = output / "generation.json", output / "pictures"
    try:
        before = json.loads(path.read_text()) if path.exists() else None
    except (ValueError, OSError):
        before = {}
    if before is None and any(pictures.iterdir()) and not overwrite:
        raise UserError(f"{pictures} holds pictures already, of unknown origin; choose another --output")
    if before and isinstance(before.get("sampling"), dict):
        # Of options that came later, what was done before.
        defaults = {name: KEYS[f"sampling.{name}"].default for name in about.get("sampling", {})}
        before["sampling"] = defaults | before["sampling"]
    changed = [
        f"{name}: {before.get(name)} -> {value}"
        for name, value in about.items()
        if before is not None and name not in ("workdir", "version", "count") and before.get(name) != value
    ]
    if changed and not overwrite:
        listed = "\n  ".join(changed)
        raise UserError(
            f"{output} holds pictures of other settings; choose another --output, or pass --overwrite to draw "
            f"them again (theirs -> given):\n  {listed}"
        )
    if changed:
        # Before the record changes, so that none of the others is taken for one of these.
        for suffix in (".png", ".tif"):
            for picture in pictures.glob(f"[0-9]*{suffix}"):
                picture.unlink()
    elif before:
        about = about | {"count": max(about["count"], before.get("count", 0))}
    atomic.write_json(path, about)

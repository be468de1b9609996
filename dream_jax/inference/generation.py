"""New pictures from a trained unconditional model."""

import json
from pathlib import Path

import numpy as np
from rich.console import Console

from dream_jax import __version__
from dream_jax.errors import UserError
from dream_jax.files import atomic, grids, images
from dream_jax.files.names import check_folder
from dream_jax.inference import drawing, trained

# What the grid shows.
_SHOWN = 64


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
) -> None:
    """Draws pictures 0 .. count-1 of a seed into OUTPUT/pictures/NUMBER.png, with OUTPUT/grid.png of the first.

    Picture i depends on (weights, sampling, seed, i) alone: a call that is repeated draws what is missing, and a larger
    count adds to what is there. OUTPUT/generation.json says what they are of.

    Args:
      sampler: a name in `sampling.SAMPLERS`; steps: network evaluations for each picture.
      batch_size: pictures drawn at once.
      overwrite: draw again what is there.
      overrides: `--config.KEY=VALUE` arguments, of `config.sampling` above all.

    Raises UserError, before anything is compiled, for a super-resolution model, impossible values, an output that
    cannot be written, or one that holds pictures of other weights, sampling or seed (unless overwrite).
    """
    output = Path(output)
    built = trained.open_experiment(workdir, overrides)
    chosen = built.config
    if built.task.paired:
        raise UserError(f"{workdir}: this model enlarges pictures and makes none from nothing; use upscale")
    for name, value, most in (("count", count, 10**6), ("batch_size", batch_size, 10**6), ("seed", seed + 1, 2**32)):
        if not 1 <= value <= most:
            raise UserError(f"--{name} {value}: it must lie between 1 and {most}")
    rows = drawing.make_rows(built, sampler, steps)
    pictures = output / "pictures"
    check_folder(pictures)

    model = trained.load_weights(workdir, built)
    about = {
        "workdir": str(workdir),
        "step": model.step,
        "weights": "ema",
        "sha256": drawing.digest(model.params),
        "sampler": sampler,
        "steps": steps,
        "seed": seed,
        "count": count,
        "sampling": chosen.sampling.to_dict(),
        "compute_dtype": chosen.compute_dtype,
        "size": chosen.image_size,
        "version": __version__,
    }
    _check(output / "generation.json", about, overwrite)

    missing = [i for i in range(count) if overwrite or not _path(pictures, i).exists()]
    drawer, key, side = drawing.make_draw(model.experiment, model.mesh), drawing.make_key(seed), chosen.image_size
    with drawing.progress_bar(console) as bar:
        job = bar.add_task("generating", total=count, completed=count - len(missing))
        for start in range(0, len(missing), batch_size):
            numbers = np.array(missing[start : start + batch_size])
            inputs = drawing.no_inputs(len(numbers), side, side)
            drawn = drawing.draw_pictures(
                drawer, model.params, inputs, rows, key, model.mesh, batch_size, numbers=numbers
            )
            for number, picture in zip(numbers, drawn, strict=True):
                images.write(_path(pictures, number), picture, overwrite)
            bar.advance(job, len(numbers))
    shown = np.stack([images.read(_path(pictures, i)) for i in range(min(count, _SHOWN))])
    images.write(output / "grid.png", grids.mosaic(shown), overwrite=True)
    others = ", the others were there" if len(missing) < count else ""
    done = f"{len(missing)} of {count} drawn into {pictures}{others}; the first in {output}/grid.png"
    console.print(done, markup=False)


def _path(folder, number) -> Path:
    return folder / f"{number:06d}.png"


def _check(path, about, overwrite):
    """Writes what the folder's pictures are of, unless it holds others."""
    try:
        before = json.loads(path.read_text()) if path.exists() else None
    except (ValueError, OSError):
        before = {}
    if before is None and any((path.parent / "pictures").iterdir()) and not overwrite:
        raise UserError(f"{path.parent}/pictures holds pictures already, of unknown origin; choose another --output")
    ignored = ("workdir", "version", "count")
    if before is not None:
        changed = [
            f"{name}: {before.get(name)} -> {about[name]}"
            for name in about
            if name not in ignored and before.get(name) != about[name]
        ]
        if changed and overwrite:
            # Before the record says otherwise: none of the others may be taken for one of these.
            for picture in (path.parent / "pictures").glob("[0-9]*.png"):
                picture.unlink()
        elif changed:
            listed = "\n  ".join(changed)
            raise UserError(
                f"{path.parent} holds pictures of other settings; choose another --output, or pass --overwrite to draw "
                f"them again (theirs -> given):\n  {listed}"
            )
    if before and not changed:
        about = about | {"count": max(about["count"], before.get("count", 0))}
    atomic.write_json(path, about)

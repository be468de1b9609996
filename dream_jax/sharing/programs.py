"""The form stablehlo: one sampler at one size as a compiled program, with the weights inside."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from dream_jax.errors import UserError
from dream_jax.experiment import Experiment
from dream_jax.files import atomic
from dream_jax.inference import drawing, tile_plans
from dream_jax.inference.drawing import Model
from dream_jax.runtime import sharding
from dream_jax.sampling import Rows
from dream_jax.sharing import folders
from dream_jax.tasks import value_range

PROGRAM, ABOUT = "model.stablehlo", "program.json"
PLATFORMS = "cpu", "cuda", "tpu"

# Bytes: what a file of this kind can hold, less what is no weight in it.
_LARGEST = 2**31 - 2**26


def files(output: Path) -> list[Path]:
    """The program, and what is to be known of it."""
    return [output / PROGRAM, output / ABOUT]


def check(experiment: Experiment, output: Path, options: dict) -> None:
    """Raises UserError for impossible options, and where the package flatbuffers is missing."""
    folders.check(experiment, output, options)
    _choose(experiment, **options)
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise UserError("--format stablehlo writes with a package that is missing: pip install flatbuffers") from error


def write(model: Model, output: Path, options: dict, console) -> None:
    """Writes the program for those of PLATFORMS that it can be lowered for; the others are told."""
    experiment = model.experiment
    rows, sides = _choose(experiment, **options)
    params = sharding.on_host(model.params)
    if sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > _LARGEST:
        raise UserError(f"{model.workdir}: its weights are too large for one program, which holds 2 GiB at most")
    program, arguments = make(experiment, params, rows, sides)
    exported, missing = _lower(program, arguments)
    for platform, reason in missing.items():
        console.print(f"warning: not for {platform}: {reason}", markup=False)
    atomic.write_bytes(output / PROGRAM, bytes(exported.serialize()))
    atomic.write_json(output / ABOUT, _about(model, options, exported))


def make(experiment: Experiment, params: dict, rows: Rows, sides: tuple[int, int]):
    """(program, the shapes of its arguments): `(picture [1, h, w, C], seed uint32, number int32)`.

    The program makes [1, H, W, C], levels as trained on, uint8 or uint16. That of a model which makes pictures from
    nothing takes no picture, but the number of a class, int32, where it knows classes; that of a task with masks takes
    one after the picture, uint8 [1, h, w, 1], 255 where there is to be painted. Its noise depends on seed and number as
    everywhere: on (threefry key of the seed, number).

    Args:
      sides: (h, w) of what it takes, or else makes.
    """
    task = experiment.task
    within = task.sides(sides) if task.paired else sides
    plain = drawing.make_plain_draw(experiment, sides=within)

    def draw(inputs, seed, number):
        return plain(params, inputs, number[None], rows, drawing.make_key(seed))

    # Made outside of the program, as conditions are elsewhere: within one, the division rounds otherwise.
    grey_levels = np.asarray(value_range.to_float(np.arange(256, dtype=np.uint8)))

    def condition(observed):
        cond = task.condition(observed)
        level = jnp.asarray(grey_levels)[value_range.to_uint8(cond)]
        return jnp.where(jnp.abs(level - cond) < 1e-5, level, cond)

    def restore(picture, *others):
        *mask, seed, number = others
        observed = task.given(picture, *mask).astype(picture.dtype)
        cond = condition(observed)
        filled_up = tile_plans.shape_of(experiment, sides).sides
        missing = [(0, side - has) for side, has in zip(filled_up, cond.shape[1:3], strict=True)]
        inputs = drawing.inputs_of(experiment, jnp.pad(cond, [(0, 0), *missing, (0, 0)], mode="reflect"), observed)
        return draw(inputs, seed, number)[:, : within[0], : within[1]]

    def generate(*arguments):
        *label, seed, number = arguments
        inputs = (
            {"cond": task.condition(label[0].reshape(1, 1, 1, 1), sides)} if label else drawing.no_inputs(1, *sides)
        )
        return draw(inputs, seed, number)

    numbers = jax.ShapeDtypeStruct((), np.uint32), jax.ShapeDtypeStruct((), np.int32)
    if task.paired:
        data = experiment.config.data
        bits = data.condition_bits if task.beside == "condition" else data.bits
        levels = np.uint16 if bits == 16 else np.uint8
        mask = [jax.ShapeDtypeStruct((1, *sides, 1), np.uint8)] if task.beside == "mask" else []
        return restore, (jax.ShapeDtypeStruct((1, *sides, task.given_channels), levels), *mask, *numbers)
    label = [jax.ShapeDtypeStruct((), np.int32)] if task.classes else []
    return generate, (*label, *numbers)


def _choose(experiment, sampler="ddim", steps=10, size=None):
    """(rows, sides of what the program takes or makes); raises UserError for options that will not do."""
    rows = drawing.make_rows(experiment, sampler, steps)
    if not experiment.task.paired:
        return rows, drawing.sides_of(experiment, size)
    if size is not None:
        return rows, drawing.parse_size(size)
    return rows, (round(experiment.config.image_size / experiment.task.scale),) * 2


def _lower(program, arguments):
    """(the exported program, {platform that it is not for: why})."""
    missing, platforms = {}, list(PLATFORMS)
    while platforms:
        try:
            return export.export(jax.jit(program), platforms=platforms)(*arguments), missing
        except Exception as error:
            # JAX has no one exception for this. One platform by itself tells which it is.
            failed = [name for name in platforms if not _lowers(program, arguments, name)] or platforms
            missing |= dict.fromkeys(failed, str(error).partition("\n")[0][:200])
            platforms = [name for name in platforms if name not in failed]
    raise UserError(f"the program cannot be exported for any of {', '.join(PLATFORMS)}: {missing[PLATFORMS[0]]}")


def _lowers(program, arguments, platform):
    try:
        export.export(jax.jit(program), platforms=[platform])(*arguments)
    except Exception:
        return False
    return True


def _about(model, options, exported) -> dict:
    config = model.experiment.config
    data, of_condition = config.data, model.experiment.task.beside == "condition"
    first = ("picture", "mask") if model.experiment.task.paired else ("class",)
    names = *first[: len(exported.in_avals) - 2], "seed", "number"
    return {
        "format": "jax.export",
        "arguments": {name: str(aval) for name, aval in zip(names, exported.in_avals, strict=True)},
        "result": str(exported.out_avals[0]),
        "bits": data.bits,
        "range": list(data.range) or None,
        "condition_bits": data.condition_bits if of_condition else None,
        "condition_range": (list(data.condition_range) or None) if of_condition else None,
        "classes": list(data.classes) or None,
        "platforms": list(exported.platforms),
        "sampler": options.get("sampler", "ddim"),
        "steps": options.get("steps", 10),
        "sampling": config.sampling.to_dict(),
        "compute_dtype": jnp.dtype(model.experiment.network.dtype).name,
        "step": model.step,
        "weights": model.weights,
        "jax": jax.__version__,
    }

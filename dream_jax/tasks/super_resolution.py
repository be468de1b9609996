"""Super-resolution: enlarging pictures."""

import jax
import jax.numpy as jnp

from dream_jax.errors import UserError
from dream_jax.tasks import blur, draws, mixture, resize, value_range
from dream_jax.tasks.jpeg import check_channels
from dream_jax.tasks.task import Task, mean_square, restoration

NEEDS_LOW = (
    "pictures as large as their originals are not made here but must be there, as the low-resolution ones: "
    "data.lr_folder, data.lr_key, or --low"
)

DEGRADATIONS = ("kernel", "mixed")
# Those that a mixed degradation draws from.
SHRINKING = "pil_bicubic", "pil_bilinear", "pil_box"

# Of the coefficients of scales that are drawn, bytes: compiled programs hold several such tables.
_LARGE_TABLE = 2**27


def super_resolution(
    scale: float,
    kernel: str = "pil_bicubic",
    residual: bool = False,
    gain: float = 1.0,
    channels: int = 3,
    width: float = 0.0,
    strengths: mixture.Strengths | None = None,
    scales: tuple[float, ...] = (),
) -> Task:
    """Enlarging, from a low-resolution picture made with a named kernel, or from one that is there.

    cond is the low-resolution picture enlarged with the same kernel (SR3, Saharia et al. 2021, section 2).

    Args:
      scale: the factor; picture sides must divide by a whole one. At 1 there are only pictures that are there.
      kernel: one of `resize.KERNELS`, rounding to grey levels as files on disk do.
      residual, gain, channels: see `restoration`; gain brings x0 near the unit variance that noise schedules assume.
      width: of a Gaussian that blurs before shrinking, in pixels of the picture; 0 is none.
      strengths: of a mixed degradation instead of that and of the kernel's shrinking.
      scales: LOW, HIGH of the factor that training draws for each picture; none is `scale`.
    """
    scale = int(scale) if scale == int(scale) else scale
    _check(scale, scales, channels, width, strengths)
    # A mixed degradation draws, and so nothing of a result can be held against what was observed.
    fixed = scale > 1 and strengths is None

    def observe(keys, picture):
        size = _low_sides(picture.shape[-3:-1], scale)
        if strengths is not None:
            return draws.each(lambda key, z: _mixed(key, z, size, scale, strengths))(keys, picture)
        return resize.resize(_blurred(picture, width), *size, kernel)

    def condition(low, sides=None):
        height, width = sides or (round(low.shape[-3] * scale), round(low.shape[-2] * scale))
        return value_range.to_float(resize.resize(low, height, width, kernel))

    def project(picture, low):
        return resize.project(picture, value_range.to_float(low, picture.dtype), kernel, width)

    baseline_name = "low resolution" if scale == 1 else kernel.removeprefix("pil_")
    return restoration(
        observe,
        condition,
        residual=residual,
        gain=gain,
        reference=lambda cond: cond,
        drawn_condition=_drawn(scales, kernel, width, strengths) if scales else None,
        baseline=condition,
        baseline_name=baseline_name,
        consistency=(lambda result, low: mean_square(observe(None, result), jnp.asarray(low))) if fixed else None,
        project=project if fixed else None,
        columns=lambda low, enlarged: {"low resolution": low, baseline_name: enlarged},
        beside="low",
        needs_beside=scale == 1,
        scale=scale,
        divisor=scale if isinstance(scale, int) else 1,
        channels=channels,
        cond_channels=channels,
    )


def _check(scale, scales, channels, width, strengths):
    if scale < 1:
        raise UserError(f"task.scale = {scale}: it must be at least 1")
    if strengths is not None:
        check_channels(channels, "task.degradation = mixed")
        if width:
            raise UserError(f"task.blur = {width}: it goes with task.degradation = kernel; mixed blurs by task.width")
    if scale == 1 and (scales or width or strengths):
        raise UserError(f"task.scale = 1: task.scales, task.blur and task.degradation make pictures; {NEEDS_LOW}")


def _low_sides(sides, scale):
    """(h, w) of the low-resolution picture of one with sides (H, W)."""
    if scale == 1:
        raise UserError(f"task.scale = 1: {NEEDS_LOW}")
    height, width = (max(side // scale if isinstance(scale, int) else round(side / scale), 1) for side in sides)
    return height, width


def _blurred(pictures, width):
    return jax.vmap(lambda picture: blur.gaussian(picture, width))(jnp.asarray(pictures)) if width else pictures


def _mixed(key, picture, size, scale, strengths):
    """A picture [H, W, C] to a low-resolution one of a size."""

    def shrink(key, picture):
        kernel = jax.random.randint(key, (), 0, len(SHRINKING))
        made = [resize.resize(picture, *size, name) for name in SHRINKING]
        return jax.lax.select_n(kernel, *made), lambda picture: picture

    return mixture.degrade(key, picture, strengths, shrink, scale, scale)


def _drawn(scales, kernel, width, strengths):
    """`(keys, pictures) -> cond` at a scale that is drawn."""

    def condition(keys, pictures):
        again = draws.each(lambda key, picture: _enlarged_again(key, picture, scales, kernel, strengths))
        return value_range.to_float(again(keys, _blurred(pictures, width)))

    return condition


def low_sizes(side: int, scales) -> tuple[int, ...]:
    """The sides of low-resolution pictures from the smallest to the largest scale that is drawn."""
    smallest = max(round(side / scales[-1]), 1)
    return tuple(range(smallest, max(round(side / scales[0]), smallest) + 1))


def check_scales(side: int, settings) -> None:
    """Raises UserError where training crops of a side are too large for the scales that `config.task` draws."""
    if side > resize.BLOCK:
        raise UserError(f"image_size = {side}: with task.scales it must be at most {resize.BLOCK}")
    smaller = low_sizes(side, settings.scales)
    kernels = settings.kernel, *(SHRINKING if settings.degradation == "mixed" else ())
    down, up = [(side, small) for small in smaller], [(small, side) for small in smaller]
    most = max(resize.bytes_of_choices(kernel, sizes) for kernel in kernels for sizes in (down, up))
    if most > _LARGE_TABLE:
        raise UserError(
            f"task.scales = {tuple(settings.scales)}: at image_size = {side} their coefficients take {most >> 20} MiB, "
            f"more than {_LARGE_TABLE >> 20}; choose a narrower range, or smaller training crops"
        )


def _enlarged_again(key, picture, scales, kernel, strengths):
    """A picture [H, W, C] shrunk to one of the sizes of some scales, and enlarged again; whole levels."""
    size_key, key = jax.random.split(key)
    height, width = picture.shape[:2]
    smaller = low_sizes(height, scales)
    sizes = (
        [(height, small) for small in smaller],
        [(width, max(round(small * width / height), 1)) for small in smaller],
    )
    back = [tuple((small, side) for side, small in pairs) for pairs in sizes]
    choice = jax.random.randint(size_key, (), 0, len(smaller))
    small_sides = [jnp.asarray([small for _, small in pairs])[choice] for pairs in sizes]

    def fill(low):
        rows, columns = (
            jnp.minimum(jnp.arange(n), small - 1) for n, small in zip(low.shape[:2], small_sides, strict=True)
        )
        return low[rows][:, columns]

    def by(name, picture):
        return resize.resize_chosen(picture, choice, *(resize.choices(name, tuple(pairs)) for pairs in sizes))

    def shrink(key, picture):
        number = jax.random.randint(key, (), 0, len(SHRINKING))
        return jax.lax.select_n(number, *(by(name, picture) for name in SHRINKING)), fill

    if strengths is None:
        low = by(kernel, picture)
    else:
        low = mixture.degrade(key, picture, strengths, shrink, height / small_sides[0], scales[0])
    return resize.resize_chosen(low, choice, *(resize.choices(kernel, pairs) for pairs in back))

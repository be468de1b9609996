"""The record of a task: the functions and sizes that every task has."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dream_jax.files import grids
from dream_jax.tasks import value_range


def clip(picture):
    """The picture within [-1, 1]."""
    return jnp.clip(picture, -1, 1)


@dataclasses.dataclass(frozen=True)
class Task:
    """Pictures -> (x0, cond), and back. Pictures are float [B, H, W, C] in [-1, 1] where nothing else is said.

    Attributes:
      observe: `(keys [B], pictures levels) -> observed` [B, h, w, .]: what is known of pictures, in whole levels as
        files hold them. Each picture's key draws what is random about it.
      condition: `(observed, sides=None) -> cond` float [B, H, W, cond_channels]: what the network is given; it is never
        noised. sides are (H, W) of the pictures, `self.sides` of what was observed by default.
      encode: `(picture, cond) -> x0` [B, H, W, x0_channels]: what the diffusion model models.
      to_picture: `(x0, cond) -> picture`.
      constrain: `(x0, cond, limit=clip) -> x0` whose picture is `limit(picture)`.
      paired: whether a result has an original that it can be compared with.
      drawn_condition: `(keys, pictures levels) -> cond` of training, where it draws more than `observe` does: a scale.
        None elsewhere.
      baseline: `(observed, sides=None) -> picture` that results are compared with; None where there is none.
      baseline_name: what that is called in tables and pictures.
      classical: (name, `observed [h, w, .] -> picture [H, W, C]`), levels on the host: what is done without a network.
      consistency: `(result, observed) -> [B]`, how far a result, in grey levels, is from what was observed of its
        original: mean squared, of values in [0, 1]. None where nothing was observed, or where the way is random.
      project: `(picture, observed) -> picture` nearest to it of which the same is observed, but for rounding; observed
        here are grey levels. None where there is none.
      columns: `(observed, baseline) -> {label: pictures}`, uint8: the first columns of a picture grid.
      given: `(pictures, mask=None) -> observed` of pictures that are there, levels: a person's, or those beside.
      beside: what may lie beside each picture in the data: "low", "condition" or "label", which is what `given` takes,
        or "mask", which it takes with the picture. Empty where there is no such thing.
      needs_beside: whether there is nothing to be observed without it.
      to_float, to_levels: `levels -> picture` and `(picture, dtype) -> levels`, inverses.
      shown: `levels -> uint8 [..., 3]`, a picture for the eye.
      measured_as: what pictures are, "picture", "depth" or "classes", which says by what metrics: see `Metric.of`.
      null: `cond -> cond` of nothing observed; None where the network is never shown that.
      dropped: in training, the share of examples that are given `null(cond)`.
      classes: how many there are, where levels are numbers of classes, of pixels or of what lies beside.
      scale: how many times larger a picture is than what was observed of it.
      divisor: what the sides of pictures must divide by.
      channels, x0_channels, observed_channels, given_channels, cond_channels: of pictures; of x0, of what is observed
        and of pictures given, which are those of pictures where nothing is said; and of cond.
    """

    observe: Callable
    condition: Callable
    encode: Callable
    to_picture: Callable
    constrain: Callable
    paired: bool = False
    drawn_condition: Callable | None = None
    baseline: Callable | None = None
    baseline_name: str = ""
    classical: tuple[str, Callable] | None = None
    consistency: Callable | None = None
    project: Callable | None = None
    columns: Callable = lambda observed, baseline: {}
    given: Callable = lambda picture, mask=None: picture
    beside: str = ""
    needs_beside: bool = False
    to_float: Callable = value_range.to_float
    to_levels: Callable = value_range.to_levels
    shown: Callable = grids.shown
    measured_as: str = "picture"
    null: Callable | None = None
    dropped: float = 0.0
    classes: int = 0
    scale: float = 1
    divisor: int = 1
    channels: int = 3
    x0_channels: int | None = None
    observed_channels: int | None = None
    given_channels: int | None = None
    cond_channels: int = 0

    def __post_init__(self):
        for name in ("x0_channels", "observed_channels", "given_channels"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.channels)

    def sides(self, observed: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of pictures from (h, w) of what is observed of them."""
        height, width = (round(side * self.scale) for side in observed)
        return height, width

    def make_pair(self, keys, picture, beside=None):
        """`(keys [B], pictures [B, H, W, C]) -> (x0, cond)`, of levels; beside [B, h, w, .] lies beside them."""
        levels = _as_floats(picture)
        if beside is None and self.drawn_condition is not None:
            cond = self.drawn_condition(keys, levels)
        else:
            observed = self.observe(keys, levels) if beside is None else self.given_beside(levels, _as_floats(beside))
            cond = self.condition(observed, picture.shape[-3:-1])
        if self.dropped:
            gone = jax.vmap(lambda key: jax.random.bernoulli(key, self.dropped))(keys)
            cond = jnp.where(gone[:, None, None, None], self.null(cond), cond)
        return self.encode(self.to_float(picture), cond), cond

    def given_beside(self, picture, beside):
        """What is observed of pictures [B, H, W, C] with what lies beside them [B, h, w, .], levels."""
        return self.given(picture, beside) if self.beside == "mask" else self.given(beside)


def restoration(
    observe, condition, *, residual: bool = False, gain: float = 1.0, reference=None, keep=None, **fields
) -> Task:
    """A task whose x0 is the picture, or `gain` times what it differs by from one that cond holds.

    Args:
      observe, condition, fields: see `Task`.
      residual: x0 is `gain * (picture - reference(cond))`: an x0 of 0 is the reference itself.
      reference: `cond -> picture`; the first of its channels by default.
      keep: `(picture, cond) -> picture` with what is known of it for certain.
    """
    channels = fields.get("channels", 3)
    reference = reference or (lambda cond: cond[..., :channels])
    keep = keep or (lambda picture, cond: picture)

    def encode(picture, cond):
        return gain * (picture - reference(cond)) if residual else picture

    def to_picture(x0, cond):
        return keep(clip(x0 / gain + reference(cond) if residual else x0), cond)

    def constrain(x0, cond, limit=clip):
        if not residual:
            return keep(limit(x0), cond)
        return gain * (keep(limit(x0 / gain + reference(cond)), cond) - reference(cond))

    return Task(observe, condition, encode, to_picture, constrain, paired=True, **fields)


def degraded(observe, name: str, *, channels: int = 3, **fields) -> Task:
    """A `restoration` of what is observed as a picture of the same size and channels, called `name`."""
    return restoration(
        observe,
        as_observed,
        baseline=as_observed,
        baseline_name=name,
        columns=lambda observed, baseline: {name: baseline},
        channels=channels,
        cond_channels=channels,
        **fields,
    )


def as_observed(observed, sides=None):
    """What was observed, levels, as the condition that is that picture itself."""
    return value_range.to_float(observed)


def observed_again(observe):
    """`Task.consistency` of an `observe` that draws nothing."""

    def consistency(result, observed):
        keys = jax.random.split(jax.random.key(0), len(result))
        return mean_square(observe(keys, result), jnp.asarray(observed))

    return consistency


def mean_square(a, b):
    """Of the difference of levels of one type [B, H, W, C], as values in [0, 1]: [B]."""
    difference = a.astype(jnp.float32) - b.astype(jnp.float32)
    # One axis at a time: a single float32 sum over a large picture would lose digits.
    return jnp.square(difference).mean(2).mean(1).mean(1) / float(value_range.white(a.dtype)) ** 2


def _as_floats(levels):
    """Whole levels 0..255 in floats, which are what is computed with: no rounding back in between."""
    levels = jnp.asarray(levels)
    return levels.astype(jnp.float32) if levels.dtype == jnp.uint8 else levels

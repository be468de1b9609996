"""Drawing pictures from a trained model: what training's samples, evaluation, restoring and generation share."""

import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dream_jax import sampling
from dream_jax.errors import UserError, shown
from dream_jax.experiment import Experiment
from dream_jax.runtime import compiler, sharding


class Model(NamedTuple):
    """What was trained, its weights, after how many steps, the devices they lie on, and the run's or model's folder.

    weights: ema or live, which of the run's they are.
    """

    experiment: Experiment
    params: dict
    step: int
    mesh: jax.sharding.Mesh
    workdir: str
    weights: str = "ema"


def progress_bar(console: Console) -> Progress:
    """A bar with count, time taken and time left."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console)


def divisor(experiment: Experiment) -> int:
    """What sides of pictures and places of tiles divide by: the network's patches and pixels of what is observed."""
    return math.lcm(experiment.network.divisor, experiment.task.divisor)


def sides_of(experiment: Experiment, size: str | None) -> tuple[int, int]:
    """(height, width) of an option like 64x96, of pictures that a model makes; None is the side that was trained on.

    Raises UserError where the network does not take them.
    """
    if size is None:
        return (experiment.config.image_size,) * 2
    height, width = parse_size(size)
    by = divisor(experiment)
    if height % by or width % by:
        raise UserError(f"--size {size}: height and width must divide by {by}, by which the network downsamples")
    return height, width


def parse_size(size: str) -> tuple[int, int]:
    """(height, width) of a text like 64x96; raises UserError for another one."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size, re.ASCII)
    if found is None:
        raise UserError(f"--size {shown(size)[:100]}: write HEIGHTxWIDTH in pixels, like 64x96")
    return int(found[1]), int(found[2])


def make_rows(experiment: Experiment, sampler: str, num_steps: int) -> sampling.Rows:
    """The rows of a named sampler, re-spaced from the experiment's schedule; arrays in the default float type."""
    options = experiment.config.sampling
    levels = sampling.levels_of(experiment.schedule, num_steps, options.spacing)
    rows = sampling.make_rows(sampler, levels, eta=options.eta, momentum=options.momentum)
    return jax.tree.map(lambda a: np.asarray(a, jnp.zeros(()).dtype), rows)


def make_denoise(experiment: Experiment, params, inputs: dict, wrap=lambda predict: predict, sides=None):
    """`denoise(x, alpha, sigma, previous=None) -> x0_hat` of a network, with the modifiers of `config.sampling`.

    Args:
      inputs: cond [B, H, W, Cc], and observed [B, h, w, .] where `sampling.project` is on.
      sides: (height, width) of pictures that are filled up to H and W, of which the rest is not projected.
      wrap: `predict -> predict`, of the network's `(x_t, cond, alpha [B]) -> output`, guided where that is asked for.
    """
    task, schedule, options = experiment.task, experiment.schedule, experiment.config.sampling
    cond = inputs["cond"]
    network = wrap(_guided(Network(experiment, params)))

    def predict(x, alpha, sigma, previous=None):
        del sigma
        return network(x, experiment.shown(cond, previous, x), jnp.broadcast_to(alpha, x.shape[:1]))

    def limit(picture):
        picture = sampling.LIMITS[options.clip](picture, options.percentile)
        if not options.project:
            return picture
        observed = inputs["observed"]
        height, width = sides or picture.shape[1:3]
        return picture.at[:, :height, :width].set(task.project(picture[:, :height, :width], observed))

    scaled = options.eps_scale != 1 or options.eps_scale_slope != 0
    return sampling.make_denoise(
        predict,
        experiment.config.objective.kind,
        schedule,
        lambda x0: task.constrain(x0, cond, limit),
        sampling.epsilon_scale(schedule, options.eps_scale, options.eps_scale_slope) if scaled else None,
        sampling.time_shift(schedule, options.shift_window, options.shift_cutoff) if options.shift_window else None,
    )


class Network(NamedTuple):
    """A network with its weights, which can be judged by another picture's statistics, as tiles are."""

    experiment: Experiment
    params: dict

    def __call__(self, x_t, cond, alpha, statistics=None):
        """Its output; statistics as from `measure`, see `Experiment.predict`."""
        return self.experiment.predict(self.params, x_t, cond, alpha, statistics=statistics)

    def measure(self, x_t, cond, alpha):
        """See `Experiment.measure`."""
        return self.experiment.measure(self.params, x_t, cond, alpha)


class Guided(NamedTuple):
    """A network with classifier-free guidance w: `uncond + w (cond - uncond)`, two evaluations.

    Ho & Salimans 2022 (arXiv 2207.12598), eq. 6, whose w is one less. Outputs of every kind are linear in x0_hat at an
    x_t, and the weights sum to 1, so that guiding outputs is guiding x0_hat.
    """

    network: Network

    def __call__(self, x_t, cond, alpha, statistics=(None, None)):
        weight, nothing = self.network.experiment.config.sampling.guidance, self._nothing(cond)
        free = self.network(x_t, nothing, alpha, statistics[0])
        return free + weight * (self.network(x_t, cond, alpha, statistics[1]) - free)

    def measure(self, x_t, cond, alpha):
        """Of both evaluations."""
        return tuple(self.network.measure(x_t, each, alpha) for each in (self._nothing(cond), cond))

    def _nothing(self, cond):
        # What a network is shown of its own estimate comes after the task's channels.
        task = self.network.experiment.task
        nothing = task.null(cond[..., : task.cond_channels])
        return jnp.concatenate([nothing, cond[..., task.cond_channels :]], -1)


def _guided(network):
    return network if network.experiment.config.sampling.guidance == 1 else Guided(network)


def make_draw(experiment: Experiment, mesh, wrap=None, levels=None, sides=None):
    """The jitted `draw(params, inputs, index, rows, key)` of every use of a model, see `make_plain_draw`.

    The batch is spread over the mesh, unless `wrap` spreads the network's work itself.
    """
    everywhere = NamedSharding(mesh, P())
    layout = NamedSharding(mesh, sharding.BATCH) if wrap is None else everywhere
    plain, options = make_plain_draw(experiment, wrap, levels, sides), compiler.options(experiment.config.deterministic)

    @functools.partial(jax.jit, out_shardings=everywhere, compiler_options=options)
    def draw(params, inputs, index, rows, key):
        return plain(params, jax.lax.with_sharding_constraint(inputs, layout), index, rows, key)

    return draw


def make_plain_draw(experiment: Experiment, wrap=None, levels=None, sides=None):
    """`draw(params, inputs, index, rows, key) -> pictures [B, H, W, C]`, traceable.

    The pictures are levels, uint8 or uint16: those that the model was trained on, unless `levels` is their type.
    inputs, wrap and sides are as for `make_denoise`, inputs made by `inputs_of`; index [B] numbers the pictures:
    picture i's noise depends on (key, i) alone.
    """
    wrap = wrap or (lambda predict: predict)
    start_key = start_key_of(experiment)
    levels = levels or (np.uint16 if experiment.config.data.bits == 16 else np.uint8)

    def draw(params, inputs, index, rows, key):
        denoise = make_denoise(experiment, params, inputs, wrap, sides)
        shape = (*inputs["cond"].shape[:3], experiment.task.x0_channels)
        shows = experiment.objective.self_conditions
        x0 = sampling.run(key, denoise, shape, rows, index, start_key, shows=shows)
        return experiment.task.to_levels(experiment.task.to_picture(x0, inputs["cond"]), levels)

    return draw


def start_key_of(experiment: Experiment):
    """The key of the starting noise that all pictures share, or None."""
    seed = experiment.config.sampling.start_seed
    return None if seed is None else make_key(seed)


def make_key(seed: int):
    return jax.random.key(seed, impl="threefry2x32")


def inputs_of(experiment: Experiment, cond, observed=None) -> dict:
    """What `draw` needs of host arrays cond [N, H, W, Cc] and observed [N, h, w, .], levels."""
    return {"cond": cond, "observed": observed} if experiment.config.sampling.project else {"cond": cond}


def no_inputs(count: int, height: int, width: int) -> dict:
    """What `draw` needs for pictures of an unconditional model."""
    return {"cond": np.zeros((count, height, width, 0), np.float32)}


def draw_pictures(draw, params, inputs, rows, key, mesh, batch_size, advance=lambda count: None, numbers=None):
    """Draws any number of pictures in batches that the mesh divides; inputs are arrays [N, ...] on the host.

    numbers: int [N], what each picture's noise depends on; 0..N-1 by default.
    """
    count = len(inputs["cond"])
    numbers = np.arange(count) if numbers is None else numbers
    batch_size = math.ceil(batch_size / mesh.size) * mesh.size
    rows_over_mesh = NamedSharding(mesh, sharding.BATCH)
    drawn = []
    for chosen, new in batches(count, batch_size):
        parts = {name: np.asarray(array[chosen]) for name, array in inputs.items()}
        parts = {name: sharding.from_host(part, rows_over_mesh) for name, part in parts.items()}
        drawn.append(np.asarray(draw(params, parts, numbers[chosen], rows, key))[:new])
        advance(new)
    return np.concatenate(drawn)


def batches(count: int, size: int):
    """(indices [size], how many of them are new) until all of 0..count-1 were seen.

    The last batch is filled up with the last index, so that one shape is compiled.
    """
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1), min(size, count - start)


def observe(experiment: Experiment, pictures, numbers=None, beside=None):
    """What is observed of pictures [N, H, W, C], levels: (observed, cond, baseline), [N, ...] on the host.

    The baseline is None where the task has none.

    They are made one by one, so that one shape is compiled, once for a task.

    Args:
      numbers: int [N], what each picture's random draws depend on; 0..N-1 by default.
      beside: [N, h, w, .], what lies beside the pictures, see `Task.beside`.
    """
    numbers = range(len(pictures)) if numbers is None else numbers
    keys = (jax.random.fold_in(make_key(0), number)[None] for number in numbers)
    places = range(len(pictures))
    each = [None if beside is None else beside[i : i + 1] for i in places]
    parts = [_observe(experiment.task, key, pictures[i : i + 1], each[i]) for i, key in zip(places, keys, strict=True)]
    parts = zip(*jax.device_get(parts), strict=True)
    return tuple(None if part[0] is None else np.concatenate(part) for part in parts)


@functools.partial(jax.jit, static_argnums=0)
def _observe(task, keys, pictures, beside):
    observed = task.observe(keys, pictures) if beside is None else task.given_beside(pictures, beside)
    observed = observed.astype(pictures.dtype if beside is None or task.beside == "mask" else beside.dtype)
    sides = pictures.shape[1:3]
    baseline = None if task.baseline is None else task.to_levels(task.baseline(observed, sides), pictures.dtype)
    return observed, task.condition(observed, sides), baseline

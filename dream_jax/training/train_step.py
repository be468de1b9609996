"""The train step: one jitted function from a state and a batch to the next state."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dream_jax import noise_schedule, objectives
from dream_jax.experiment import Experiment
from dream_jax.networks import parameters
from dream_jax.runtime import compiler, sharding
from dream_jax.training import flat, train_state
from dream_jax.training.bad_numbers import FINITE, QUARTILES
from dream_jax.training.train_state import TrainState

_THREEFRY = "threefry2x32"

# Jitted, so that the norms of a step's three trees, which are alike, are traced once.
_norm = jax.jit(optax.tree.norm)


def make_losses(experiment: Experiment, key, steps_per_epoch: int):
    """`losses(params, batch, step, rectify) -> (per-example losses [B], facts {name: [B]})`, the objective of a config.

    Everything random about an example comes from fold_in(fold_in(key, step), row), so it is the same whatever devices,
    processes and microbatches the batch is spread over. `rectify` (static) is `objectives.rectifies` of the step; where
    it is False, the loss is the standard one.
    """
    settings = experiment.config.objective

    def losses(params, batch, step, rectify):
        draw, cond = _draw(experiment, jax.random.fold_in(key, step), batch)
        if settings.ramp_epochs:
            draw = draw._replace(ramp=jnp.minimum(step // steps_per_epoch / settings.ramp_epochs, 1.0))

        def predict(x_t, dropout_keys=None, alpha=None, previous=None):
            alpha = draw.alpha if alpha is None else alpha
            return experiment.predict(params, x_t, experiment.shown(cond, previous, x_t), alpha, dropout_keys)

        result = objectives.losses(predict, draw, settings, rectify)
        return result.loss, {"eps_error": result.eps_error, "lam": result.lam, "t": draw.t}

    return losses


def _draw(experiment, step_key, batch):
    """(objectives.Draw, cond) of a batch: each row's from its own key."""
    config, schedule = experiment.config, experiment.schedule
    # No row ever has this number; with one t for the whole batch, every row draws it from here.
    shape = *batch["image"].shape[1:3], experiment.task.x0_channels
    shared_key = None if config.schedule.per_example else jax.random.fold_in(step_key, 2**31 - 1)

    def draw_row(row):
        key = jax.random.fold_in(step_key, row)
        flip, task_key, level, noise, dropout = jax.random.split(key, 5)
        levels = noise_schedule.draw(level, schedule, config.schedule.continuous, shared_key)
        eps = jax.random.normal(noise, shape, jnp.float32)
        # The sixth of a split: it leaves the others as they are.
        more = jax.random.fold_in(key, 5)
        return jax.random.bernoulli(flip), task_key, levels, eps, jax.random.split(dropout, 2), more

    flip, task_key, (t, alpha, sigma), eps, dropout, more = jax.vmap(draw_row)(batch["row"])
    picture, beside = batch["image"], batch.get("beside")
    if config.data.flip:
        picture, beside = (_flipped(each, flip) for each in (picture, beside))
    x0, cond = experiment.task.make_pair(task_key, picture, beside)
    constrain = functools.partial(experiment.task.constrain, cond=cond)
    return objectives.Draw(x0, eps, t, alpha, sigma, schedule, dropout, more, constrain=constrain), cond


def _flipped(pictures, flip):
    return None if pictures is None else jnp.where(flip[:, None, None, None], pictures[:, :, ::-1], pictures)


class TrainStep(NamedTuple):
    """`jitted(seed, state, batch, rectify)` with its seed, uint32 [2], so that runs of other seeds share one program.

    What is compiled from `lower` takes the seed too.
    """

    jitted: Callable
    seed: np.ndarray

    def __call__(self, state, batch, rectify):
        return self.jitted(self.seed, state, batch, rectify)

    def lower(self, state, batch, rectify):
        return self.jitted.lower(self.seed, state, batch, rectify)

    def trace(self, state, batch, rectify):
        return self.jitted.trace(self.seed, state, batch, rectify)


def make_train_step(experiment: Experiment, optimizer, mesh, specs: TrainState, steps_per_epoch: int):
    """The jitted `train_step(state, batch, rectify) -> (state, metrics)`, a TrainStep; the state is donated.

    Args:
      specs: `sharding.state_specs` of the state.
      steps_per_epoch: pictures // batch size, for what a config counts in epochs.

    batch is {"image": uint8 [G, H, W, C], "row": int32 [G]}, sharded by `sharding.BATCH`; row is the place in the
    global batch. Batches of pairs have "beside", levels [G, h, w, .]: what lies beside pictures. rectify is static: see
    `make_losses`. A step whose loss, gradient or update is not finite changes nothing but the step's number.
    """
    config = experiment.config
    local_gradient = _make_local_gradient(experiment, mesh, specs, steps_per_epoch)

    def train_step(key_data, state, batch, rectify):
        gradient, sums = jax.shard_map(
            functools.partial(local_gradient, rectify=rectify),
            mesh=mesh,
            in_specs=(P(), P(), sharding.BATCH, P()),
            out_specs=(specs.params, P()),
        )(key_data, state.params, batch, state.step)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        # Some optimizers divide by the gradient, which is 0 there.
        updates = flat.without_filling(updates)
        params = optax.apply_updates(state.params, updates)
        decay = train_state.ema_decay(state.step, config.ema_decay)
        ema = jax.tree.map(lambda e, p: e + (1 - decay).astype(p.dtype) * (p - e), state.ema, params)
        metrics = _metrics(sums, gradient, updates, params)
        # An optimizer may overflow where the gradient does not.
        finite = jnp.all(jnp.isfinite(jnp.stack([metrics[name] for name in FINITE])))
        new = TrainState(state.step + 1, params, ema, opt_state)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return kept.replace(step=new.step), metrics

    layout = sharding.named(specs, mesh)
    batch_layout = NamedSharding(mesh, sharding.BATCH)
    everywhere = NamedSharding(mesh, P())
    step = jax.jit(
        train_step,
        static_argnums=3,
        donate_argnums=1,
        in_shardings=(everywhere, layout, batch_layout),
        out_shardings=(layout, everywhere),
        compiler_options=compiler.options(config.deterministic),
    )
    return TrainStep(step, np.asarray(jax.random.key_data(_key(config))))


def _make_local_gradient(experiment, mesh, specs, steps_per_epoch):
    """`(key_data, params, batch, step, rectify) -> (gradient, sums)` of this device's rows, summed over all devices.

    Inside shard_map; params and gradient are flat.
    """
    accumulation, num_steps = experiment.config.accumulation, experiment.schedule.num_steps

    def varying(a):
        return lax.pcast(a, sharding.AXES, to="varying")

    def local_gradient(key_data, params, batch, step, rectify):
        losses = make_losses(experiment, jax.random.wrap_key_data(key_data, impl=_THREEFRY), steps_per_epoch)
        # Differentiating with respect to per-device parameters keeps the all-reduce out of the loop over microbatches.
        layout, params = params.layout, jax.tree.map(varying, params).tree()
        microbatches = jax.tree.map(lambda a: a.reshape(accumulation, -1, *a.shape[1:]), batch)

        # Jitted, it is traced once for the shapes of its results and for the loop.
        @jax.jit
        def gradient_of(params, microbatch):
            gradient, sums = jax.grad(loss_of, has_aux=True)(params, microbatch)
            return layout.flatten(gradient), sums

        def loss_of(params, microbatch):
            loss, facts = losses(params, microbatch, step, rectify)
            quartile = (facts.pop("t") - 1) * QUARTILES // num_steps
            member = (quartile[:, None] == jnp.arange(QUARTILES)[None]).astype(loss.dtype)
            sums = {name: jnp.sum(value) for name, value in facts.items()}
            return jnp.mean(loss), sums | {"losses": loss @ member, "counts": jnp.sum(member, axis=0)}

        shapes = jax.eval_shape(gradient_of, params, jax.tree.map(lambda a: a[0], microbatches))
        zeros = jax.tree.map(lambda a: varying(jnp.zeros(a.shape, a.dtype)), shapes)

        def accumulate(total, microbatch):
            return jax.tree.map(jnp.add, total, gradient_of(params, microbatch)), None

        (gradient, sums), _ = lax.scan(accumulate, zeros, microbatches)
        gradient = jax.tree.map(lambda g: g / (accumulation * mesh.size), gradient)
        everywhere = jax.tree.map(lambda _: P(), sums)
        return sharding.sum_to_specs((gradient, sums), (specs.params, everywhere))

    return local_gradient


def _metrics(sums, gradient, updates, params):
    """What a step reports, from its sums over all examples."""
    losses, counts = sums.pop("losses"), sums.pop("counts")
    examples = jnp.sum(counts)
    return {
        "loss": jnp.sum(losses) / examples,
        "level_losses": losses,
        "level_counts": counts,
        **{name: value / examples for name, value in sums.items()},
        "gradient_norm": _norm(gradient),
        "update_norm": _norm(updates),
        "parameter_norm": _norm(params),
    }


def _key(config):
    return jax.random.key(config.seed, impl=_THREEFRY)


def start_state(experiment: Experiment, optimizer, mesh):
    """(init, specs): a function that makes the first state laid out on the mesh, and its layout; init is traceable."""
    key = _key(experiment.config)
    draw, shapes = parameters.drawing(experiment.network, key, experiment.inputs_shape())
    start = functools.partial(train_state.start, optimizer=optimizer, shards=mesh.shape["shard"])
    specs = sharding.state_specs(jax.eval_shape(start, shapes), mesh)
    laid_out = jax.jit(start, out_shardings=sharding.named(specs, mesh))
    return lambda: laid_out(draw(key)), specs

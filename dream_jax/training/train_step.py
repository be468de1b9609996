"""The train step: one jitted function from a state and a batch to the next state."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dream_jax import config as configs
from dream_jax import dream, noise_schedule
from dream_jax import experiment as experiments
from dream_jax.experiment import Experiment
from dream_jax.runtime import compiler, sharding
from dream_jax.training import train_state
from dream_jax.training.train_state import TrainState
from dream_jax.training.watch import FINITE, QUARTILES

# Jitted, so that the norms of a step's three trees, which are alike, are traced once.
_norm = jax.jit(optax.tree.norm)


def make_losses(experiment: Experiment, key, steps_per_epoch: int):
    """`losses(params, batch, step, rectify) -> (per-example losses [B], facts {name: [B]})`, the objective of a config.

    Everything random about an example comes from fold_in(fold_in(key, step), row), so it is the same whatever devices,
    processes and microbatches the batch is spread over. `rectify` (static) is `rectifies` of the step; where it is
    False, the loss is the standard one.
    """
    config, schedule, task = experiment.config, experiment.schedule, experiment.task
    objective = config.objective
    estimator, share = experiments.estimator(experiment), configs.estimate_share(config)

    def losses(params, batch, step, rectify):
        step_key = jax.random.fold_in(key, step)
        # No row ever has this number; with one t for the whole batch, every row draws it from here.
        shared_key = None if config.schedule.per_example else jax.random.fold_in(step_key, 2**31 - 1)

        def draw(row):
            flip, task_key, level, noise, dropout = jax.random.split(jax.random.fold_in(step_key, row), 5)
            levels = noise_schedule.draw(level, schedule, config.schedule.continuous, shared_key)
            eps = jax.random.normal(noise, batch["image"].shape[1:], jnp.float32)
            return jax.random.bernoulli(flip), task_key, levels, eps, jax.random.split(dropout, 2)

        flip, task_key, (t, alpha, sigma), eps, dropout = jax.vmap(draw)(batch["row"])
        picture = batch["image"]
        if config.data.flip:
            picture = jnp.where(flip[:, None, None, None], picture[:, :, ::-1], picture)
        x0, cond = task.make_pair(task_key, picture)

        def predict(x_t, dropout_keys=None):
            return experiment.predict(params, x_t, cond, alpha, dropout_keys)

        conservative = objective.name == "conservative_dream"
        lam = None
        if rectify and objective.name != "standard":
            # The study counts t from 0, the paper from 1.
            time_fraction = (t - 1 if conservative else t) / schedule.num_steps
            ramp = 1.0
            if objective.ramp_epochs:
                ramp = jnp.minimum(step // steps_per_epoch / objective.ramp_epochs, 1.0)
            lam = dream.weight(
                "linear" if conservative else objective.weight,
                alpha,
                sigma,
                time_fraction,
                minimum=objective.minimum,
                maximum=objective.maximum,
                ramp=ramp,
                p=1.0 if conservative else objective.p,
                rate=objective.rate,
                threshold=objective.threshold,
            )
        first, second = dropout[:, 0], dropout[:, 1]
        if conservative and lam is not None:
            loss, eps_error = dream.conservative_dream(
                lambda x: predict(x, first), lambda x: predict(x, second), x0, eps, alpha, sigma, lam,
                mix=objective.mix, distance=objective.distance,
            )  # fmt: skip
        else:
            rows, part = None, slice(None)
            if lam is not None and share < 1:
                rows = part = dream.estimated_rows(lam, share, objective.estimate_pick == "heaviest")

            def estimate(x_t):
                return estimator.predict(params, x_t, cond[part], alpha[part])

            loss, eps_error = dream.dream(
                lambda x: predict(x, first), estimate, x0, eps, alpha, sigma, lam,
                kind=objective.kind, distance=objective.distance, rows=rows,
            )  # fmt: skip
            if rows is not None:
                lam = jnp.zeros_like(lam).at[rows].set(lam[rows])
        if objective.min_snr_gamma is not None:
            loss = loss * dream.min_snr_weight(objective.kind, alpha, sigma, objective.min_snr_gamma)
        facts = {"eps_error": eps_error, "lam": jnp.zeros_like(sigma) if lam is None else lam, "t": t}
        return loss, facts

    return losses


def make_train_step(experiment: Experiment, optimizer, mesh, specs: TrainState, steps_per_epoch: int):
    """The jitted `train_step(state, batch, rectify) -> (state, metrics)`; the state is donated.

    Args:
      specs: `sharding.state_specs` of the state.
      steps_per_epoch: pictures // batch size, for what a config counts in epochs.

    batch is {"image": uint8 [G, H, W, C], "row": int32 [G]}, sharded by `sharding.BATCH`; row is the place in the
    global batch. rectify is static: see `make_losses`. A step whose loss, gradient or update is not finite changes
    nothing but the step's number.
    """
    config = experiment.config
    key = jax.random.key(config.seed, impl="threefry2x32")
    losses = make_losses(experiment, key, steps_per_epoch)

    def local_gradient(params, batch, step, rectify):
        # Differentiating with respect to per-device parameters keeps the all-reduce out of the loop over microbatches.
        params = jax.tree.map(lambda p: lax.pcast(p, sharding.AXES, to="varying"), params)
        microbatches = jax.tree.map(lambda a: a.reshape(config.accumulation, -1, *a.shape[1:]), batch)

        # Jitted, it is traced once for the shapes of its results and for the loop.
        @jax.jit
        @functools.partial(jax.grad, has_aux=True)
        def gradient_of(params, microbatch):
            loss, facts = losses(params, microbatch, step, rectify)
            quartile = (facts.pop("t") - 1) * QUARTILES // experiment.schedule.num_steps
            member = (quartile[:, None] == jnp.arange(QUARTILES)[None]).astype(loss.dtype)
            sums = {name: jnp.sum(value) for name, value in facts.items()}
            return jnp.mean(loss), sums | {"losses": loss @ member, "counts": jnp.sum(member, axis=0)}

        zeros = jax.tree.map(
            lambda a: lax.pcast(jnp.zeros(a.shape, a.dtype), sharding.AXES, to="varying"),
            jax.eval_shape(gradient_of, params, jax.tree.map(lambda a: a[0], microbatches)),
        )

        def accumulate(total, microbatch):
            return jax.tree.map(jnp.add, total, gradient_of(params, microbatch)), None

        (gradient, sums), _ = lax.scan(accumulate, zeros, microbatches)
        parts = config.accumulation * mesh.size
        gradient = jax.tree.map(lambda g: g / parts, gradient)
        everywhere = jax.tree.map(lambda _: P(), sums)
        return sharding.sum_to_specs((gradient, sums), (specs.params, everywhere))

    def train_step(state, batch, rectify):
        gradient, sums = jax.shard_map(
            functools.partial(local_gradient, rectify=rectify),
            mesh=mesh,
            in_specs=(P(), sharding.BATCH, P()),
            out_specs=(specs.params, P()),
        )(state.params, batch, state.step)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = train_state.ema_decay(state.step, config.ema_decay)
        ema = jax.tree.map(lambda e, p: e + (1 - decay).astype(p.dtype) * (p - e), state.ema, params)
        losses, counts = sums.pop("losses"), sums.pop("counts")
        examples = jnp.sum(counts)
        metrics = {
            "loss": jnp.sum(losses) / examples,
            "level_losses": losses,
            "level_counts": counts,
            **{name: value / examples for name, value in sums.items()},
            "gradient_norm": _norm(gradient),
            "update_norm": _norm(updates),
            "parameter_norm": _norm(params),
        }
        # An optimizer may overflow where the gradient does not.
        watched = jnp.stack([metrics[name] for name in FINITE])
        finite = jnp.all(jnp.isfinite(watched))
        new = TrainState(state.step + 1, params, ema, opt_state)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return kept.replace(step=new.step), metrics

    layout = sharding.named(specs, mesh)
    batch_layout = NamedSharding(mesh, sharding.BATCH)
    everywhere = NamedSharding(mesh, P())
    return jax.jit(
        train_step,
        static_argnums=2,
        donate_argnums=0,
        in_shardings=(layout, {"image": batch_layout, "row": batch_layout}),
        out_shardings=(layout, everywhere),
        compiler_options=compiler.options(config.deterministic),
    )


def rectifies(config, step: int, steps_per_epoch: int) -> bool:
    """Whether this step rectifies: its start has come, and it is one of every `estimate_every`."""
    c = config.objective
    started = step // steps_per_epoch >= c.start_epoch and step >= c.start_step
    return started and step % c.estimate_every == 0


def start_state(experiment: Experiment, optimizer, mesh):
    """(init, specs): a jitted function that makes the first state laid out on the mesh, and its layout."""

    def create(key):
        return train_state.create(experiment.network, optimizer, key, experiment.inputs_shape())

    key = jax.random.key(experiment.config.seed, impl="threefry2x32")
    specs = sharding.state_specs(jax.eval_shape(create, key), mesh)
    init = jax.jit(create, out_shardings=sharding.named(specs, mesh))
    return functools.partial(init, key), specs

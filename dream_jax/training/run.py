"""A training run between two of its steps: its state, its checkpoints and its record."""

import functools
import importlib.metadata
import math
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from dream_jax import config as configs
from dream_jax import objectives
from dream_jax.data import batches, sources
from dream_jax.errors import UserError, shown
from dream_jax.experiment import Experiment
from dream_jax.files import tensors
from dream_jax.networks import pytorch
from dream_jax.optimizers import make_optimizer
from dream_jax.runtime import consensus, sharding
from dream_jax.training import checkpoint, mirror, skipped_steps, train_state, watch
from dream_jax.training.run_log import RunLog
from dream_jax.training.train_step import make_train_step, start_state


class Run:
    """A run between two of its steps, the same in all processes; process 0 writes its files.

    Attributes:
      step, total: how many steps are done, and will be.
      state: the state after them.
      window: the metrics of the steps that are not logged yet; None for one that was skipped.
      stats: what the watch knows of the steps before the window.
      skipped: the numbers, from 1, of steps that are left out.
      resumed: whether it goes on from a checkpoint.
      saved: the step of the newest checkpoint, or None.
      copies: keeps the run's files beside checkpoints that lie elsewhere.
    """

    def __init__(self, experiment: Experiment, source, mesh, workdir: Path, tell):
        config = experiment.config
        self.experiment, self.config, self.workdir, self.tell = experiment, config, workdir, tell
        self.chief = jax.process_index() == 0
        self.steps_per_epoch = max(len(source) // config.batch_size, 1)
        self.total = config.steps if config.epochs is None else config.epochs * self.steps_per_epoch
        self._source = source
        self._pictures = batches.train_pictures(source, config.seed, config.image_size, config.data.resize)
        self._batch_layout = NamedSharding(mesh, sharding.BATCH)

        self._optimizer = make_optimizer(config.optimizer)
        self._init, specs = start_state(experiment, self._optimizer, mesh)
        self._layout = sharding.named(specs, mesh)
        self._train_step = make_train_step(experiment, self._optimizer, mesh, specs, self.steps_per_epoch)
        self._directory = config.checkpoint.directory or workdir / "checkpoints"
        self._origin = facts_of_run(config, source)

        self.log = None
        self.copies = mirror.Mirror(workdir, config.checkpoint.directory, tell)

        skipped, rolled_back_to = skipped_steps.read(workdir) if self.chief else ([], [])
        self.skipped = set(consensus.of_first(skipped))
        self._rolled_back_to = consensus.of_first(rolled_back_to)
        self.resumed = self._load()
        if not self.resumed and (config.network.weights is not None or self.total == 0):
            self.save()
        if self.chief and self.skipped - set(skipped):
            skipped_steps.write(workdir, self.skipped)
        self.log = RunLog(workdir, self.step) if self.chief else None

    def _load(self, before=math.inf):
        """Takes the newest checkpoint before a step, else the first state; says whether there was a checkpoint."""
        restored = checkpoint.restore(
            self._directory,
            jax.eval_shape(self._init),
            self._layout,
            tell=self.tell,
            accept=lambda about: check_origin(about, self._origin, self._directory),
            move=True,
            before=before,
        )
        self.state, about = (self._first_state(), {}) if restored is None else restored
        keep = self.config.checkpoint
        self.manager = checkpoint.open_manager(self._directory, keep.keep, keep.keep_best)
        self.step, self.saved = int(self.state.step), self.manager.latest_step()
        self.window, self.stats = from_json(about.get("unlogged", [])), about.get("watch", watch.start())
        self.skipped |= set(about.get("skipped_steps", ()))
        return restored is not None

    def _first_state(self):
        if self.config.network.weights is None:
            self.tell("initialising the network")
            return jax.block_until_ready(self._init())
        params = read_params(self.experiment, jax.eval_shape(self._init).params)
        start = functools.partial(train_state.start, optimizer=self._optimizer)
        return jax.jit(start, out_shardings=self._layout)(params)

    def batches(self):
        return batches.Batches(self._pictures, self.config.batch_size, self._batch_layout, self.config.data.workers)

    def advance(self, batches) -> None:
        """Does the next step, or counts it only."""
        if self.step + 1 in self.skipped:
            self.state, metrics = self.state.replace(step=self.state.step + 1), None
        else:
            self.state, metrics = self._train_step(self.state, batches(self.step), self._rectifies(self.step + 1))
        self.window.append(metrics)
        self.step += 1

    def _rectifies(self, number):
        return objectives.rectifies(self.config.objective, number - 1, self.steps_per_epoch)

    def save(self, loss: float | None = None) -> None:
        """Saves the state; loss is what it may be kept for as one of the best."""
        about = {"watch": self.stats, "skipped_steps": sorted(self.skipped), "loss": loss}
        if self.window:
            about["unlogged"] = to_json(jax.device_get(self.window))
        if self.chief and self.log:
            self.log.sync()
            self.copies.update()
        checkpoint.save(self.manager, self.state, self._origin | about)
        self.saved = self.step

    def examine(self) -> watch.Verdict:
        """What the watch says of the window; tells it, and keeps the batches that are to blame.

        Raises UserError where the run is to stop.
        """
        self.window = jax.device_get(self.window)
        verdict = watch.examine(self.stats, self.window, self.step, self._rectifies, self.config.watch)
        for step in verdict.not_finite:
            names = skipped_steps.names(self._source, self.config, step)
            listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            kept = ""
            if self.chief:
                kept = skipped_steps.save_batch(self.workdir, step, self._source, self._pictures, self.config)
            verdict.reasons.append(f"the pictures of step {step}: {listed}; {kept}")
        if verdict.action == "stop":
            checkpoint.wait(self.manager)
            last = (
                "there is no checkpoint yet" if self.saved is None else f"the last checkpoint is of step {self.saved}"
            )
            raise UserError("\n  ".join([*verdict.reasons, last]))
        for reason in verdict.reasons:
            self.tell(f"warning: {reason}")
        return verdict

    def roll_back(self, verdict: watch.Verdict) -> None:
        """Goes back to the newest checkpoint before the steps to be left out, or to the first state without any.

        The steps are recorded after that: a run which is killed in between finds the same again.
        """
        at = self.step
        checkpoint.wait(self.manager)
        self.manager.close()
        self.state = None  # A second one may not fit.
        self._load(before=verdict.steps[0])
        if self._rolled_back_to.count(self.step) >= self.config.watch.limit:
            raise UserError(
                "\n  ".join(verdict.reasons) + f"\n  the run was rolled back to step {self.step} "
                f"{self.config.watch.limit} times (watch.limit) and has not come past it; {watch.BEGIN_ANEW}"
            )
        self._rolled_back_to.append(self.step)
        self.skipped |= set(verdict.steps)
        listed = ", ".join(map(str, verdict.steps))
        self.tell(f"rolled back from step {at} to step {self.step}; from now on without step {listed}")
        if self.chief:
            skipped_steps.record(self.workdir, at, self.step, verdict.steps, verdict.reasons)
            skipped_steps.write(self.workdir, self.skipped)
            self.log.rewind(self.step)

    def close(self) -> None:
        self.manager.close()
        if self.log:
            self.log.close()


def read_params(experiment: Experiment, shapes):
    """The official PyTorch weights of `network.weights` as params, which must have the experiment's shapes."""
    config = experiment.config.network
    arrays = tensors.read_weights(config.weights)
    try:
        network, params = pytorch.load_sr3(arrays, config.norm_groups)
    except UserError as error:
        raise UserError(f"{shown(config.weights)}: {error}") from None
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, shapes):
        # Attention is named by the picture's side there, as the config has it.
        sides = [experiment.config.image_size >> level for level in network.attention_levels]
        raise UserError(
            f"{config.weights} holds another network; set network.channels={network.inner_channels}, "
            f"network.channel_multipliers={','.join(map(str, network.channel_multipliers))}, network.num_res_blocks="
            f"{network.num_res_blocks}, network.attention_resolutions={','.join(map(str, sides))}, network.patch=1"
        )
    return jax.tree.map(lambda array, shape: array.astype(shape.dtype), params, shapes)


def facts_of_run(config, source) -> dict:
    """What a checkpoint says of its origin."""
    packages = "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"config": config.to_dict(), "versions": versions, "data": sources.fingerprint(source)}


def check_origin(about: dict, now: dict, directory) -> None:
    """Raises UserError where a checkpoint comes from another config or other data than the run that would go on."""
    changed = configs.differences(*(configs.from_record(facts["config"]) for facts in (about, now)))
    if about["data"] != now["data"]:
        changed.append(f"the training pictures: {about['data']} -> {now['data']}")
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(
            f"the checkpoints in {directory} are of another run; choose another --workdir (and checkpoint.directory), "
            f"or undo the difference (theirs -> given):\n  {listed}"
        )


def to_json(window: list) -> list:
    """Steps' metrics as JSON holds them, to the bit: what a run that stops between two lines of its log takes along."""
    return [metrics and {name: np.asarray(value).tolist() for name, value in metrics.items()} for metrics in window]


def from_json(window: list) -> list:
    dtype = jax.dtypes.canonicalize_dtype(float)
    return [metrics and {name: np.asarray(value, dtype) for name, value in metrics.items()} for metrics in window]

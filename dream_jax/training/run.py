"""A training run: opened, moved by a step, saved, rolled back."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict

from dream_jax import objectives
from dream_jax.data.batches import Batches, train_pictures
from dream_jax.data.indexed import Source
from dream_jax.errors import UserError
from dream_jax.experiment import Experiment
from dream_jax.files import atomic
from dream_jax.optimizers import make_optimizer
from dream_jax.runtime import consensus, sharding
from dream_jax.training import (
    bad_numbers,
    bad_step_files,
    checkpoint,
    flat,
    mirror,
    origin,
    parent,
    published_weights,
    train_state,
)
from dream_jax.training.run_log import RunLog
from dream_jax.training.train_state import TrainState
from dream_jax.training.train_step import make_train_step, start_state
from dream_jax.training.workdir import checkpoint_folder


class Program(NamedTuple):
    """What a run computes, and where it lies on the devices.

    Attributes:
      init: `() -> state`, the first state, initialised at random; traceable.
      start: `params -> state`, the first state from these parameters; jitted.
      train_step: see `make_train_step`.
      state_layout: a TrainState of NamedShardings.
      batch_layout: the NamedSharding of batches.
    """

    init: Callable[[], TrainState]
    start: Callable[[optax.Params], TrainState]
    train_step: Callable[[TrainState, dict, bool], tuple[TrainState, dict]]
    state_layout: TrainState
    batch_layout: NamedSharding


def make_program(experiment: Experiment, mesh: jax.sharding.Mesh, steps_per_epoch: int) -> Program:
    optimizer = make_optimizer(experiment.config.optimizer)
    init, specs = start_state(experiment, optimizer, mesh)
    layout = sharding.named(specs, mesh)
    shards = mesh.shape["shard"]
    start = jax.jit(functools.partial(train_state.start, optimizer=optimizer, shards=shards), out_shardings=layout)
    train_step = make_train_step(experiment, optimizer, mesh, specs, steps_per_epoch)
    return Program(init, start, train_step, layout, NamedSharding(mesh, sharding.BATCH))


@dataclasses.dataclass(eq=False)
class Run:
    """A run between two of its steps, the same in all processes; process 0 writes its files. `open_run` makes one.

    Attributes:
      experiment: what is trained.
      source: the training pictures.
      workdir: the run's folder.
      tell: called with messages for the person.
      program: what it computes.
      steps_per_epoch: pictures // batch size, at least 1.
      total: the number of steps that the run will have.
      origin: what its checkpoints record of it, `origin.facts`.
      copies: copies the run's files beside checkpoints that lie elsewhere.
      skipped: the numbers, from 1, of steps that are left out.
      rolled_back_to: the step that each rollback went back to.
      step: the number of steps done.
      state: the state after them.
      window: the metrics of the steps that are not in the log yet; None for a step that was left out.
      stats: what the watch knows of the steps before the window.
      manager: of the checkpoints.
      saved: the step of the newest checkpoint, or None.
      resumed: whether the run goes on from a checkpoint.
      log: the run's record in process 0, None in others.
    """

    experiment: Experiment
    source: Source
    workdir: Path
    tell: Callable[[str], None]
    program: Program
    steps_per_epoch: int
    total: int
    origin: dict
    copies: mirror.Mirror
    skipped: set[int]
    rolled_back_to: list[int]
    step: int = 0
    state: TrainState | None = None
    window: list = dataclasses.field(default_factory=list)
    stats: dict = dataclasses.field(default_factory=bad_numbers.start)
    manager: ocp.CheckpointManager | None = None
    saved: int | None = None
    resumed: bool = False
    log: RunLog | None = None

    @property
    def config(self) -> FrozenConfigDict:
        return self.experiment.config

    @property
    def chief(self) -> bool:
        """Whether this process writes the run's files."""
        return jax.process_index() == 0

    @property
    def pictures(self) -> grain.MapDataset:
        """The pictures of all steps, one after the other."""
        config = self.config
        return train_pictures(self.source, config.seed, config.image_size, config.data.resize, config.data.crop)

    def batches(self) -> Batches:
        config = self.config
        return Batches(self.pictures, config.batch_size, self.program.batch_layout, config.data.workers)

    def rectifies(self, number: int) -> bool:
        """Whether the objective rectifies in a step, counted from 1."""
        return objectives.rectifies(self.config.objective, number - 1, self.steps_per_epoch)

    def load(self, before=math.inf) -> bool:
        """Goes to the newest checkpoint before a step, else to the first state; says whether there was a checkpoint."""
        self.state = None  # A second state may not fit into memory.
        folder = checkpoint_folder(self.workdir, self.config)
        restored = checkpoint.restore(
            folder,
            jax.eval_shape(self.program.init),
            self.program.state_layout,
            tell=self.tell,
            accept=lambda about: origin.check(about, self.origin, folder),
            move=True,
            before=before,
        )
        self.state, about = (self._first_state(), {}) if restored is None else restored
        self.step = int(self.state.step)
        self.window, self.stats = _from_json(about.get("unlogged", [])), about.get("watch", bad_numbers.start())
        self.skipped |= set(about.get("skipped_steps", ()))
        keep = self.config.checkpoint
        self.manager = checkpoint.open_manager(folder, keep.keep, keep.keep_best)
        self.saved = self.manager.latest_step()
        return restored is not None

    def _first_state(self):
        if self.config.init.path is not None:
            return self._state_of_parent()
        if self.config.network.weights is None:
            self.tell("initialising the network")
            return jax.block_until_ready(self.program.init())
        return self.program.start(published_weights.read(self.experiment, self._shapes()))

    def _shapes(self):
        """The parameters as ShapeDtypeStructs."""
        return flat.shapes(jax.eval_shape(self.program.init).params)

    def _state_of_parent(self):
        """The first state, from the weights of `config.init`; process 0 records where they are from."""
        params, about = parent.read(
            self.experiment, self._shapes(), lambda: flat.trees(self.program.init().params), self.tell
        )
        if self.chief:
            atomic.write_json(self.workdir / "parent.json", about)
        self.tell(f"beginning with the weights of {self.config.init.path}")
        return self.program.start(params)

    def average(self) -> dict:
        """The averaged weights as the network takes them, a tree on every device."""
        everywhere = NamedSharding(self.program.batch_layout.mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: sharding.from_host(leaf, everywhere), flat.trees(self.state.ema))

    def advance(self, batches: Batches) -> None:
        """Does the next step; one that is left out is only counted."""
        if self.step + 1 in self.skipped:
            self.state, metrics = self.state.replace(step=self.state.step + 1), None
        else:
            rectify = self.rectifies(self.step + 1)
            self.state, metrics = self.program.train_step(self.state, batches(self.step), rectify)
        self.window.append(metrics)
        self.step += 1

    def save(self, loss: float | None = None) -> None:
        """Saves the state; of the checkpoints with a loss those with the lowest are kept as the best."""
        about = {"watch": self.stats, "skipped_steps": sorted(self.skipped), "loss": loss}
        if self.window:
            about["unlogged"] = _to_json(jax.device_get(self.window))
        if self.log:
            self.log.sync()
            self.copies.update()
        checkpoint.save(self.manager, self.state, self.origin | about)
        self.saved = self.step

    def examine(self) -> bad_numbers.Verdict:
        """What the watch says of the window. Tells the reasons, and keeps the batches that were not finite.

        Raises UserError where the run must stop.
        """
        self.window = jax.device_get(self.window)
        verdict = bad_numbers.examine(self.stats, self.window, self.step, self.rectifies, self.config.watch)
        for step in verdict.not_finite:
            verdict.reasons.append(self._keep_batch(step))
        if verdict.action == "stop":
            checkpoint.wait(self.manager)
            last = (
                "there is no checkpoint yet" if self.saved is None else f"the last checkpoint is of step {self.saved}"
            )
            raise UserError("\n  ".join([*verdict.reasons, last]))
        for reason in verdict.reasons:
            self.tell(f"warning: {reason}")
        return verdict

    def _keep_batch(self, step):
        """Keeps the pictures of a step, by process 0; says what they are called and where they are."""
        names = bad_step_files.names(self.source, self.config, step)
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        kept = ""
        if self.chief:
            kept = bad_step_files.save_batch(self.workdir, step, self.source, self.pictures, self.config)
        return f"the pictures of step {step}: {listed}; {kept}"

    def roll_back(self, verdict: bad_numbers.Verdict) -> None:
        """Goes back to the newest checkpoint before the steps to leave out, or to the first state without any.

        Raises UserError where it has gone back there `bad_numbers.limit` times before.
        """
        at, limit = self.step, self.config.watch.limit
        checkpoint.wait(self.manager)
        self.manager.close()
        self.load(before=verdict.steps[0])
        if self.rolled_back_to.count(self.step) >= limit:
            raise UserError(
                "\n  ".join(verdict.reasons) + f"\n  the run was rolled back to step {self.step} "
                f"{limit} times (bad_numbers.limit) and has not come past it; {bad_numbers.BEGIN_ANEW}"
            )
        self.rolled_back_to.append(self.step)
        self.skipped |= set(verdict.steps)
        listed = ", ".join(map(str, verdict.steps))
        self.tell(f"rolled back from step {at} to step {self.step}; from now on without step {listed}")
        # The steps are recorded only now: a run that is killed before comes to them again.
        if self.log:
            bad_step_files.record(self.workdir, at, self.step, verdict.steps, verdict.reasons)
            bad_step_files.write(self.workdir, self.skipped)
            self.log.rewind(self.step)

    def close(self) -> None:
        self.manager.close()
        if self.log:
            self.log.close()


def open_run(
    experiment: Experiment, source: Source, mesh: jax.sharding.Mesh, workdir: Path, tell: Callable[[str], None]
) -> Run:
    """The run of a workdir at its newest checkpoint, or at its start; all processes call it.

    Raises UserError where its checkpoints are damaged or of another run, and where files cannot be read or written.
    """
    config, chief = experiment.config, jax.process_index() == 0
    steps_per_epoch = max(len(source) // config.batch_size, 1)
    skipped, rolled_back_to = bad_step_files.read(workdir) if chief else ([], [])
    run = Run(
        experiment=experiment,
        source=source,
        workdir=workdir,
        tell=tell,
        program=make_program(experiment, mesh, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        total=config.steps if config.epochs is None else config.epochs * steps_per_epoch,
        origin=origin.facts(config, source),
        copies=mirror.Mirror(workdir, config.checkpoint.directory, tell),
        skipped=set(consensus.of_first(skipped)),
        rolled_back_to=consensus.of_first(rolled_back_to),
    )
    run.resumed = run.load()
    given = config.network.weights is not None or config.init.path is not None
    if not run.resumed and (given or run.total == 0):
        run.save()
    if chief:
        # Checkpoints may know of more than the workdir's own list, which may be lost.
        if run.skipped - set(skipped):
            bad_step_files.write(workdir, run.skipped)
        run.log = RunLog(workdir, run.step)
    return run


def _to_json(window: list) -> list:
    """Steps' metrics as lists of numbers, exact to the bit: a checkpoint between two lines of the log holds them."""
    return [metrics and {name: np.asarray(value).tolist() for name, value in metrics.items()} for metrics in window]


def _from_json(window: list) -> list:
    dtype = jax.dtypes.canonicalize_dtype(float)
    return [metrics and {name: np.asarray(value, dtype) for name, value in metrics.items()} for metrics in window]

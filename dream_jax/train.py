"""Training: the loop around the train step."""

import functools
import importlib.metadata
import json
import math
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dream_jax import (
    checkpoint,
    compilation_cache,
    data,
    evaluate,
    hang,
    images,
    rollback,
    sharding,
    stopping,
    train_state,
    watch,
)
from dream_jax import config as configs
from dream_jax import draw as drawing
from dream_jax import experiment as experiments
from dream_jax import workdir as workdirs
from dream_jax.errors import UserError, shown
from dream_jax.experiment import Experiment
from dream_jax.networks import pytorch_import
from dream_jax.optimizer import make_optimizer
from dream_jax.run_log import RunLog
from dream_jax.train_state import TrainState
from dream_jax.train_step import QUARTILES, make_train_step, rectifies, start_state


def read_params(experiment: Experiment, shapes):
    """The official PyTorch weights of `network.weights` as params, which must have the experiment's shapes."""
    config = experiment.config.network
    arrays = pytorch_import.read_weights(config.weights)
    try:
        network, params = pytorch_import.load_sr3(arrays, config.norm_groups)
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


def check_devices(config, devices: int) -> None:
    """Raises UserError where the batch, or its self-estimates, do not divide over the devices there are."""
    parts = devices * config.accumulation
    if config.batch_size % parts:
        raise UserError(
            f"batch_size = {config.batch_size}: it must divide by devices x accumulation = {devices} x "
            f"{config.accumulation} = {parts}"
        )
    rows, group = config.batch_size // parts, configs.estimate_share(config).denominator
    if rows % group:
        raise UserError(
            f"objective.estimate_share = {config.objective.estimate_share}: batch_size / (devices x accumulation) = "
            f"{rows} must divide by {group}, for every device to have a whole number of these pictures"
        )


def check_local(workdir: Path) -> None:
    """Raises UserError where a workdir is in a bucket."""
    if "://" in str(workdir) or str(workdir).startswith(("gs:", "s3:")):
        raise UserError(
            f"{workdir}: the workdir is a local folder; checkpoints alone may lie in a bucket, checkpoint.directory"
        )


def open_workdir(workdir: Path, config) -> None:
    """Makes the workdir's folders, and checks that a run in it has the same config."""
    path = workdir / "config.json"
    try:
        (workdir / "samples").mkdir(parents=True, exist_ok=True)
        if path.exists() and (changed := configs.differences(configs.read(path), config)):
            listed = "\n  ".join(changed)
            raise UserError(
                f"{workdir} holds a run with another config; choose another --workdir, or undo the difference "
                f"(run's -> given):\n  {listed}"
            )
        probe = path.with_suffix(".tmp")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{workdir}: the workdir cannot be written ({error.strerror or error})") from error


def facts_of_run(config, source) -> dict:
    """What a checkpoint says of its origin."""
    packages = "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"config": config.to_dict(), "versions": versions, "data": data.fingerprint(source)}


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


def train_and_evaluate(config, workdir, console: Console) -> TrainState:
    """Trains to `config.steps`, going on by itself from the newest checkpoint in the workdir, then evaluates.

    Args:
      config: from `config.load` and `config.override`.
      workdir: a local folder, see the README for what it holds.
    """
    config = configs.validate(config)
    check_devices(config, jax.device_count())
    workdir = Path(workdir)
    if jax.process_index():
        return _train_and_evaluate(config, workdir, console)
    check_local(workdir)
    with workdirs.hold(workdir, console.print):
        open_workdir(workdir, config)
        return _train_and_evaluate(config, workdir, console)


def _train_and_evaluate(config, workdir, console):
    chief = jax.process_index() == 0
    sharding.synchronise("workdir")
    experiment = experiments.build(config)
    source = experiments.make_source(config, "train")
    held_out = experiments.eval_pictures(config)
    mesh = sharding.make_mesh(config.mesh.shard)
    run = Run(experiment, source, mesh, workdir, console.print)
    if chief:
        # Only now: a run that failed at its data leaves no config that the mended one would have to agree with.
        configs.save(config, workdir / "config.json")
    resumed, start = run.resumed, run.step
    _introduce(console, run, source, held_out, mesh)
    loop(run, _make_sampler(experiment, held_out, mesh), console)
    # Only process 0 is sure to see the workdir.
    evaluated = bool(multihost_utils.broadcast_one_to_all(np.int32(chief and _is_evaluated(workdir, start))))
    if resumed and start >= run.total and evaluated:
        console.print(
            f"this run has its {run.total} steps already; to go on give a larger --config.steps, to measure it again"
        )
        console.print("use `python -m dream_jax evaluate`")
    else:
        model = drawing.Model(experiment, run.state.ema, run.step, mesh, str(workdir))
        record, columns = evaluate.evaluate({workdir.name: model}, held_out, console)
        if chief:
            evaluate.show(record, console)
            evaluate.write(record, columns, workdir / "evaluation.json", overwrite=False)
            evaluate.tell(workdir / "evaluation.json", console)
    return run.state


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
    """

    def __init__(self, experiment: Experiment, source, mesh, workdir: Path, tell):
        config = experiment.config
        self.experiment, self.config, self.workdir, self.tell = experiment, config, workdir, tell
        self.chief = jax.process_index() == 0
        self.steps_per_epoch = max(len(source) // config.batch_size, 1)
        self.total = config.steps if config.epochs is None else config.epochs * self.steps_per_epoch
        self._source = source
        self._pictures = data.train_pictures(source, config.seed, config.image_size, config.data.resize)
        self._batch_layout = NamedSharding(mesh, sharding.BATCH)

        self._optimizer = make_optimizer(config.optimizer)
        self._init, specs = start_state(experiment, self._optimizer, mesh)
        self._layout = sharding.named(specs, mesh)
        self._train_step = make_train_step(experiment, self._optimizer, mesh, specs, self.steps_per_epoch)
        self._directory = config.checkpoint.directory or workdir / "checkpoints"
        self._origin = facts_of_run(config, source)

        skipped, rolled_back_to = rollback.read(workdir) if self.chief else ([], [])
        self.skipped = set(checkpoint.as_first_process(skipped))
        self._rolled_back_to = checkpoint.as_first_process(rolled_back_to)
        self.resumed = self._load()
        if not self.resumed and (config.network.weights is not None or self.total == 0):
            self.save()
        if self.chief and self.skipped - set(skipped):
            rollback.write(workdir, self.skipped)
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
        return data.Batches(self._pictures, self.config.batch_size, self._batch_layout, self.config.data.workers)

    def advance(self, batches) -> None:
        """Does the next step, or counts it only."""
        if self.step + 1 in self.skipped:
            self.state, metrics = self.state.replace(step=self.state.step + 1), None
        else:
            self.state, metrics = self._train_step(self.state, batches(self.step), self._rectifies(self.step + 1))
        self.window.append(metrics)
        self.step += 1

    def _rectifies(self, number):
        return rectifies(self.config, number - 1, self.steps_per_epoch)

    def save(self, loss: float | None = None) -> None:
        """Saves the state; loss is what it may be kept for as one of the best."""
        about = {"watch": self.stats, "skipped_steps": sorted(self.skipped), "loss": loss}
        if self.window:
            about["unlogged"] = to_json(jax.device_get(self.window))
        if self.chief and self.log:
            self.log.sync()
        checkpoint.save(self.manager, self.state, self._origin | about)
        self.saved = self.step

    def examine(self) -> watch.Verdict:
        """What the watch says of the window; tells it, and keeps the batches that are to blame.

        Raises UserError where the run is to stop.
        """
        self.window = jax.device_get(self.window)
        verdict = watch.examine(self.stats, self.window, self.step, self._rectifies, self.config.watch)
        for step in verdict.not_finite:
            names = rollback.names(self._source, self.config, step)
            listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            kept = ""
            if self.chief:
                kept = rollback.save_batch(self.workdir, step, self._source, self._pictures, self.config)
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
            rollback.record(self.workdir, at, self.step, verdict.steps, verdict.reasons)
            rollback.write(self.workdir, self.skipped)
            self.log.rewind(self.step)

    def close(self) -> None:
        self.manager.close()
        if self.log:
            self.log.close()


def loop(run: Run, sampler, console) -> None:
    """All steps that are left; every `log_every` of them the host reads their metrics, and only then."""
    config, total = run.config, run.total
    columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
    columns = *columns, TextColumn("left"), TimeRemainingColumn()
    bar = Progress(*columns, console=console, speed_estimate_period=300)
    try:
        patience = config.supervision.hang_minutes, config.supervision.first_minutes
        watched = hang.watched(*patience, run.workdir)
        compiling = compilation_cache.compiling("the train step", console.print)
        asked = stopping.asked(console.print)
        with asked as asked_to_stop, run.batches() as batches, bar, watched as beat, compiling as ran:
            job = bar.add_task("training", total=total, completed=run.step, rate="compiling")
            compiled, first_of_window, since = False, run.step, time.monotonic()
            while run.step < total:
                if number := asked_to_stop():
                    _leave(run, number)
                run.advance(batches)
                done = run.step
                if not compiled and run.window[-1] is not None:
                    jax.block_until_ready(run.window)
                    console.print(f"first step after {ran()}")
                    compiled, first_of_window, since = True, done, time.monotonic()
                save = done % config.checkpoint.every == 0 or done == total
                if done % config.log_every == 0 or save:
                    checkpoint.check(run.manager)
                    verdict = run.examine()
                    elapsed = time.monotonic() - since
                    rate = (done - first_of_window) / elapsed if done > first_of_window else 0.0
                    if verdict.action == "rollback":
                        run.roll_back(verdict)
                        bar.update(job, completed=run.step)
                        first_of_window, since = run.step, time.monotonic()
                        continue
                    values = summarise(run.window, done)
                    timing = {"steps_per_second": rate, "images_per_second": rate * config.batch_size}
                    if run.chief:
                        run.log.write(done, values, timing | {"time": time.time()})
                    bar.update(job, completed=done, rate=f"{rate:.2f} steps/s")
                    console.print(_line(done, total, values, rate, config.batch_size))
                    run.window, run.stats = [], verdict.stats
                elif len(run.window) % 8 == 0:
                    # Reads no value: it only keeps the host a few steps ahead of the device, not hundreds.
                    jax.block_until_ready(run.window[-8])
                    bar.update(job, completed=done)
                if done % config.samples.every == 0 or done == total:
                    grid = sampler(run.state.ema)
                    if run.chief:
                        images.write(run.workdir / "samples" / f"step_{done:07d}.png", grid, overwrite=True)
                        run.log.picture(done, "samples", grid)
                if save:
                    run.save(values.get("loss"))
                if not run.window:
                    first_of_window, since = done, time.monotonic()
                beat(done)
            checkpoint.wait(run.manager)
    except stopping.Stopped as stopped:
        how = "starts anew" if run.saved is None else f"goes on from the checkpoint of step {run.saved}"
        console.print(f"{stopped}; the same command {how}")
        raise
    finally:
        run.close()


def _leave(run, number):
    """Saves the run between two lines of its log, and raises Stopped."""
    # What would be rolled back is not saved: the run that goes on comes there again.
    if run.step and run.step != run.saved and run.examine().action != "rollback":
        run.save()
    checkpoint.wait(run.manager)
    raise stopping.Stopped(number)


def _line(done, total, values, rate, batch_size):
    left = clock((total - done) / rate if rate else float("nan"))
    skipped = f"  {values['skipped']} skipped" if values["skipped"] else ""
    means = "no step applied"
    if "loss" in values:
        means = f"loss {values['loss']:.4f}  |eps-eps_hat| {values['eps_error']:.4f}  lam {values['lam']:.3f}"
    return f"step {done}/{total}  {means}{skipped}  {rate * batch_size:.1f} images/s  {left} left"


def _is_evaluated(workdir, step):
    """Whether the evaluation that follows the last step was written to its end."""
    files = evaluate.files(workdir / "evaluation.json")
    try:
        # The pictures come after the tables; a run to whose last step some were added has an older table.
        return json.loads(files["table"].read_text())["step"] == step and files["pictures"].exists()
    except (OSError, ValueError, KeyError):
        return False


def summarise(window: list, last: int) -> dict:
    """Means over the applied steps of a window, the loss also by quartile of the noise level (1 the cleanest).

    window holds the metrics of the steps up to `last`, None for one that was skipped. `skipped` counts those that were
    not applied, `skipped_steps` names them where there are any.
    """
    applied = [metrics for metrics in window if metrics is not None and watch.is_finite(metrics)]
    first = last - len(window) + 1
    skipped = [step for step, metrics in enumerate(window, first) if metrics is None or not watch.is_finite(metrics)]
    values = {}
    if applied:
        stacked = {name: np.stack([metrics[name] for metrics in applied]) for name in applied[0]}
        sums, counts = (np.sum(stacked.pop(name), axis=0) for name in ("level_losses", "level_counts"))
        values = {name: float(np.mean(value, dtype=np.float64)) for name, value in stacked.items()}
        for quartile in range(QUARTILES):
            if counts[quartile]:
                values[f"loss_quartile_{quartile + 1}"] = float(sums[quartile] / counts[quartile])
    return values | {"skipped": len(skipped)} | ({"skipped_steps": skipped} if skipped else {})


def to_json(window: list) -> list:
    """Steps' metrics as JSON holds them, to the bit: what a run that stops between two lines of its log takes along."""
    return [metrics and {name: np.asarray(value).tolist() for name, value in metrics.items()} for metrics in window]


def from_json(window: list) -> list:
    dtype = jax.dtypes.canonicalize_dtype(float)
    return [metrics and {name: np.asarray(value, dtype) for name, value in metrics.items()} for metrics in window]


def clock(seconds: float) -> str:
    if not np.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _make_sampler(experiment, held_out, mesh):
    """`sampler(params) -> grid`: the pictures that training shows, always of the same inputs and noise."""
    config = experiment.config
    draw, key = drawing.make_draw(experiment, mesh), drawing.make_key(config.evaluation.seeds[0])
    rows = drawing.make_rows(experiment, config.samples.sampler, config.samples.steps)
    shown, size = held_out[: config.samples.count], config.evaluation.batch_size
    if experiment.task.degrade is None:
        inputs = drawing.no_inputs(config.samples.count, *held_out.shape[1:3])
    else:
        low, cond, enlarged = drawing.degraded(experiment, shown)
        inputs = drawing.inputs_of(experiment, cond, low)

    def sampler(params):
        drawn = drawing.draw_pictures(draw, params, inputs, rows, key, mesh, size)
        if experiment.task.degrade is None:
            across = min(4, len(drawn))
            columns = {f"sample {i + 1}": drawn[i::across][: len(drawn) // across] for i in range(across)}
            return images.grid(columns)
        label = evaluate.label(config, config.samples.sampler, config.samples.steps)
        return evaluate.comparison(experiment, low, enlarged, {label: drawn}, shown)

    return sampler


def _introduce(console, run, source, held_out, mesh):
    count = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    config = run.config
    console.print(
        f"{config.objective.name} ({config.objective.kind}), network of {count:,} parameters in "
        f"{np.dtype(experiments.compute_dtype(config)).name} on {devices}"
    )
    counts = f"{source.pictures} training pictures (or tiles of large ones), {len(held_out)} held out"
    console.print(f"{counts}; {run.total} steps of {config.batch_size}")
    if run.resumed:
        console.print(f"workdir {run.workdir}: going on from the checkpoint of step {run.step}")
    else:
        console.print(f"workdir {run.workdir}: a new run")
    if run.skipped:
        console.print(f"steps that are left out: {', '.join(map(str, sorted(run.skipped)))}")

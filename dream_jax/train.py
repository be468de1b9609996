"""Training: the loop around the train step."""

import functools
import importlib.metadata
import json
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
    mirror,
    sharding,
    stopping,
    train_state,
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
    try:
        (workdir / "samples").mkdir(parents=True, exist_ok=True)
        check_same(workdir, config)
        probe = workdir / "config.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{workdir}: the workdir cannot be written ({error.strerror or error})") from error


def check_same(folder, config) -> None:
    """Raises UserError where a folder holds the files of a run with another config."""
    path = folder / "config.json"
    if path.exists() and (changed := configs.differences(configs.read(path), config)):
        listed = "\n  ".join(changed)
        raise UserError(
            f"{folder} holds a run with another config; choose another --workdir (and checkpoint.directory), or undo "
            f"the difference (run's -> given):\n  {listed}"
        )


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
    mirror.check(config.checkpoint.directory)
    workdir = Path(workdir)
    if jax.process_index():
        return _train_and_evaluate(config, workdir, console)
    check_local(workdir)
    directory = config.checkpoint.directory
    with workdirs.hold(workdir, console.print):
        if directory is not None:
            mirror.bring_back(workdir, directory, lambda there: check_same(there, config), console.print)
        open_workdir(workdir, config)
        return _train_and_evaluate(config, workdir, console)


def _train_and_evaluate(config, workdir, console):
    chief = jax.process_index() == 0
    sharding.synchronise("workdir")
    experiment = experiments.build(config)
    source = experiments.make_source(config, "train")
    held_out = experiments.eval_pictures(config)
    steps_per_epoch = max(len(source) // config.batch_size, 1)
    total = config.steps if config.epochs is None else config.epochs * steps_per_epoch

    mesh = sharding.make_mesh(config.mesh.shard)
    optimizer = make_optimizer(config.optimizer)
    init, specs = start_state(experiment, optimizer, mesh)
    directory = config.checkpoint.directory or workdir / "checkpoints"
    about_run, layout = facts_of_run(config, source), sharding.named(specs, mesh)
    restored = checkpoint.restore(
        directory,
        jax.eval_shape(init),
        layout,
        tell=console.print,
        accept=lambda about: check_origin(about, about_run, directory),
        move=True,
    )
    manager = checkpoint.open_manager(directory, config.checkpoint.keep)
    resumed, unlogged = restored is not None, []
    if resumed:
        state, about = restored
        unlogged = from_json(about.get("unlogged", []))
    elif config.network.weights is None:
        with console.status("initialising the network"):
            state = jax.block_until_ready(init())
    else:
        params = read_params(experiment, jax.eval_shape(init).params)
        state = jax.jit(functools.partial(train_state.start, optimizer=optimizer), out_shardings=layout)(params)
    if not resumed and (config.network.weights is not None or total == 0):
        checkpoint.save(manager, state, about_run)
    copies = mirror.Mirror(workdir, config.checkpoint.directory, console.print)
    if chief:
        # Only now: a run that failed at its data leaves no config that the mended one would have to agree with.
        configs.save(config, workdir / "config.json")
        copies.update()
    start = int(state.step)
    _introduce(console, experiment, state, source, held_out, mesh, total, workdir, start if resumed else None)

    train_step = make_train_step(experiment, optimizer, mesh, specs, steps_per_epoch)
    sampler = _make_sampler(experiment, held_out, mesh)
    log = RunLog(workdir, start) if chief else None
    pictures = data.train_pictures(source, config.seed, config.image_size, config.data.resize)
    batch_layout = NamedSharding(mesh, sharding.BATCH)
    columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
    columns = *columns, TextColumn("left"), TimeRemainingColumn()
    bar = Progress(*columns, console=console, speed_estimate_period=300)
    saved = manager.latest_step()
    try:
        batches = data.Batches(pictures, config.batch_size, batch_layout, config.data.workers)
        watch = config.supervision
        watched = hang.watched(watch.hang_minutes, watch.first_minutes, workdir)
        compiling = compilation_cache.compiling("the train step", console.print)
        with stopping.asked(console.print) as asked_to_stop, batches, bar, watched as beat, compiling as compiled:
            job = bar.add_task("training", total=total, completed=start, rate="compiling")
            window, since = unlogged, time.monotonic()
            for step in range(start, total):
                if number := asked_to_stop(step):
                    if step > start and step != saved:
                        window = jax.device_get(window)
                        check_finite(window, step - len(window))
                        if chief:
                            log.sync()
                            copies.update()
                        checkpoint.save(manager, state, about_run | {"unlogged": to_json(window)})
                        saved = step
                    checkpoint.wait(manager)
                    raise stopping.Stopped(number)
                state, metrics = train_step(state, batches(step), rectifies(config, step, steps_per_epoch))
                window.append(metrics)
                done = step + 1
                if step == start:
                    jax.block_until_ready(metrics)
                    console.print(f"first step after {compiled()}")
                    first_of_window, since = done, time.monotonic()
                save = done % config.checkpoint.every == 0 or done == total
                if done % config.log_every == 0 or save:
                    checkpoint.check(manager)
                    values = summarise(jax.device_get(window), step - len(window) + 1)
                    elapsed = time.monotonic() - since
                    rate = (done - first_of_window) / elapsed if done > first_of_window else 0.0
                    timing = {"steps_per_second": rate, "images_per_second": rate * config.batch_size}
                    timing |= {"time": time.time()}
                    bar.update(job, completed=done, rate=f"{rate:.2f} steps/s")
                    if chief:
                        log.write(done, values, timing)
                    left = (total - done) / rate if rate else float("nan")
                    console.print(
                        f"step {done}/{total}  loss {values['loss']:.4f}  |eps-eps_hat| {values['eps_error']:.4f}  "
                        f"lam {values['lam']:.3f}  {timing['images_per_second']:.1f} images/s  {clock(left)} left"
                    )
                    window = []
                elif len(window) % 8 == 0:
                    # Reads no value: it only keeps the host a few steps ahead of the device, not hundreds.
                    jax.block_until_ready(window[-8]["loss"])
                    bar.update(job, completed=done)
                if done % config.samples.every == 0 or done == total:
                    grid = sampler(state.ema)
                    if chief:
                        images.write(workdir / "samples" / f"step_{done:07d}.png", grid, overwrite=True)
                        log.picture(done, "samples", grid)
                if save:
                    if chief:
                        log.sync()
                        copies.update()
                    checkpoint.save(manager, state, about_run)
                    saved = done
                if not window:
                    first_of_window, since = done, time.monotonic()
                beat(done)
            checkpoint.wait(manager)
    except stopping.Stopped as stopped:
        how = "starts anew" if saved is None else f"goes on from the checkpoint of step {saved}"
        console.print(f"{stopped}; the same command {how}")
        raise
    finally:
        manager.close()
        if chief:
            log.close()
    # Only process 0 is sure to see the workdir.
    evaluated = bool(multihost_utils.broadcast_one_to_all(np.int32(chief and _is_evaluated(workdir, start))))
    if resumed and start >= total and evaluated:
        console.print(
            f"this run has its {total} steps already; to go on give a larger --config.steps, to measure it again"
        )
        console.print("use `python -m dream_jax evaluate`")
    else:
        model = drawing.Model(experiment, state.ema, int(state.step), mesh, str(workdir))
        record, columns = evaluate.evaluate({workdir.name: model}, held_out, console)
        if chief:
            evaluate.show(record, console)
            evaluate.write(record, columns, workdir / "evaluation.json", overwrite=False)
            evaluate.tell(workdir / "evaluation.json", console)
            copies.update()
    return state


def _is_evaluated(workdir, step):
    """Whether the evaluation that follows the last step was written to its end."""
    files = evaluate.files(workdir / "evaluation.json")
    try:
        # The pictures come after the tables; a run to whose last step some were added has an older table.
        return json.loads(files["table"].read_text())["step"] == step and files["pictures"].exists()
    except (OSError, ValueError, KeyError):
        return False


def summarise(window: list[dict], first_step: int) -> dict:
    """Means over a window of steps' metrics, the loss also by quartile of the noise level (1 the cleanest)."""
    check_finite(window, first_step)
    stacked = {name: np.stack([metrics[name] for metrics in window]) for name in window[0]}
    sums, counts = (np.sum(stacked.pop(name), axis=0) for name in ("level_losses", "level_counts"))
    values = {name: float(np.mean(value, dtype=np.float64)) for name, value in stacked.items()}
    for quartile in range(QUARTILES):
        if counts[quartile]:
            values[f"loss_quartile_{quartile + 1}"] = float(sums[quartile] / counts[quartile])
    return values


def check_finite(window: list[dict], first_step: int) -> None:
    """Raises UserError where a step of a window of metrics had a loss or gradient that is not finite."""
    for number, metrics in enumerate(window):
        if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])):
            raise UserError(
                f"step {first_step + number + 1}: loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}: "
                "not finite, and not applied. Look at the data, or begin anew in another --workdir with a lower "
                "optimizer.learning_rate or with optimizer.clip"
            )


def to_json(window: list[dict]) -> list[dict]:
    """Steps' metrics as JSON holds them, to the bit: what a run that stops between two lines of its log takes along."""
    return [{name: np.asarray(value).tolist() for name, value in metrics.items()} for metrics in window]


def from_json(window: list[dict]) -> list[dict]:
    dtype = jax.dtypes.canonicalize_dtype(float)
    return [{name: np.asarray(value, dtype) for name, value in metrics.items()} for metrics in window]


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


def _introduce(console, experiment, state, source, held_out, mesh, total, workdir, resumed):
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    config = experiment.config
    console.print(
        f"{config.objective.name} ({config.objective.kind}), network of {count:,} parameters in "
        f"{np.dtype(experiments.compute_dtype(config)).name} on {devices}"
    )
    counts = f"{source.pictures} training pictures (or tiles of large ones), {len(held_out)} held out"
    console.print(f"{counts}; {total} steps of {config.batch_size}")
    if resumed is None:
        console.print(f"workdir {workdir}: a new run")
    else:
        console.print(f"workdir {workdir}: going on from the checkpoint of step {resumed}")

"""What each command does."""

import json
from pathlib import Path

import jax
from rich.console import Console

from dream_jax import config as configs
from dream_jax import experiment as experiments
from dream_jax.data import held_out, sources
from dream_jax.errors import UserError
from dream_jax.evaluation import measuring
from dream_jax.files import grids
from dream_jax.inference import drawing
from dream_jax.runtime import consensus, lock, sharding
from dream_jax.training import loop, mirror, screen
from dream_jax.training.run import open_run
from dream_jax.training.train_state import TrainState
from dream_jax.training.workdir import check_local, check_same, make_workdir


def train(options, rest, console):
    from dream_jax import config
    from dream_jax.runtime import processes

    chosen = config.override(config.load(options.config), rest)
    config.validate(chosen)
    processes.join(chosen)
    import jax

    if jax.process_index():
        console = Console(quiet=True)
    train_and_evaluate(chosen, options.workdir, console)


def evaluate(options, rest, console):
    from dream_jax.evaluation import gap, measuring
    from dream_jax.files.names import check_output
    from dream_jax.inference import trained

    finding = options.find_start is not None
    if finding and (options.gap or len(options.workdir) > 1 or options.find_start < 1):
        raise UserError("--find_start takes a number of at least 1, and one --workdir, without --gap")
    if len(options.workdir) > 1 and not options.output:
        raise UserError("several runs: say with --output FILE.json where their common table goes")
    names = _names(options.workdir)
    kind = "gap" if options.gap else "start" if finding else "evaluation"
    output = Path(options.output or f"{options.workdir[0]}/{kind}.json")
    models = {name: trained.load(workdir, rest) for name, workdir in names.items()}
    check_output(output)
    model = next(iter(models.values()))
    if finding:
        return _find_start(options, model, output, console)
    pictures = held_out.eval_pictures(model.experiment.config)
    if options.gap:
        record = gap.measure(models, pictures, console)
        gap.show(record, console)
        gap.write(record, output, options.overwrite)
        console.print(f"table: {output}   plot: {output.with_suffix('.png')}", markup=False)
        return
    journal = output.with_name(f"{output.stem}.partial.jsonl")
    record, columns = measuring.evaluate(models, pictures, console, journal)
    measuring.show(record, console)
    measuring.write(record, columns, output, options.overwrite)
    journal.unlink(missing_ok=True)
    measuring.tell(output, console)


def _names(workdirs):
    """{name in tables: workdir}: the folders' own names, or the whole paths where these are not all different."""
    short = [Path(workdir).resolve().name for workdir in workdirs]
    names = short if len(set(short)) == len(short) else workdirs
    if len(set(names)) < len(names):
        raise UserError("--workdir names the same run twice")
    return dict(zip(names, workdirs, strict=True))


def _find_start(options, model, output, console):
    from dream_jax.evaluation import measuring
    from dream_jax.files import atomic
    from dream_jax.files.names import set_aside

    config = model.experiment.config
    pictures = held_out.eval_pictures(config, "train")
    ranking = measuring.find_start(model, pictures, options.find_start, console)
    for entry in ranking[:5]:
        console.print(f"start_seed {entry['start_seed']}: {entry['psnr']:.3f} dB on {len(pictures)} training pictures")
    mean = sum(entry["psnr"] for entry in ranking) / len(ranking)
    console.print(f"mean of {len(ranking)}: {mean:.3f} dB. Use --config.sampling.start_seed={ranking[0]['start_seed']}")
    if not options.overwrite:
        set_aside(output, [output])
    settings = {
        "sampler": config.evaluation.samplers[0],
        "steps": config.evaluation.steps[0],
        "side": held_out.side_of(config),
    }
    about = {"protocol": "find_start", "step": model.step, "pictures": len(pictures), **settings}
    atomic.write_json(about | {"ranking": ranking}, output)
    console.print(f"ranking: {output}", markup=False)


def upscale(options, rest, console):
    from dream_jax.inference import upscaling

    names = "sampler", "steps", "seed", "samples", "memory", "tile", "overwrite"
    choices = {name: getattr(options, name) for name in names}
    suffix = options.format and f".{options.format}"
    return upscaling.upscale(
        options.workdir, options.input, options.output, console, suffix=suffix, overrides=rest, **choices
    )


def generate(options, rest, console):
    from dream_jax.inference import generation

    names = ("count", "sampler", "steps", "seed", "batch_size", "overwrite")
    choices = {name: getattr(options, name) for name in names}
    generation.generate(options.workdir, options.output, console=console, overrides=rest, **choices)


def prepare(options, rest, console):

    console.print(f"prepared: {sources.prepare_tfds(options.tfds, options.tfds_dir)}")


def train_and_evaluate(config, workdir, console: Console) -> TrainState:
    """Trains to `config.steps`, going on by itself from the newest checkpoint in the workdir, then evaluates.

    Args:
      config: from `config.load` and `config.override`.
      workdir: a local folder, see the README for what it holds.
    """
    config = configs.validate(config)
    sharding.check_batch(config.batch_size, config.accumulation, jax.device_count())
    mirror.check(config.checkpoint.directory)
    workdir = Path(workdir)
    if jax.process_index():
        return _train_and_evaluate(config, workdir, console)
    check_local(workdir)
    directory = config.checkpoint.directory
    with lock.hold(workdir, console.print):
        if directory is not None:
            mirror.bring_back(workdir, directory, lambda there: check_same(there, config), console.print)
        make_workdir(workdir, config)
        return _train_and_evaluate(config, workdir, console)


def _train_and_evaluate(config, workdir, console):
    chief = jax.process_index() == 0
    consensus.synchronise("workdir")
    experiment = experiments.build(config)
    source = sources.open_source(config, "train")
    pictures = held_out.eval_pictures(config)
    mesh = sharding.make_mesh(config.mesh.shard)
    run = open_run(experiment, source, mesh, workdir, console.print)
    if chief:
        # Only now: a run that failed at its data leaves no config that the mended one would have to agree with.
        configs.save(config, workdir / "config.json")
        run.copies.update()
    resumed, start = run.resumed, run.step
    screen.introduce(console, run, pictures, mesh)
    loop.loop(run, _make_sampler(experiment, pictures, mesh), console)
    # Only process 0 is sure to see the workdir.
    (evaluated,) = consensus.of_first([chief and _is_evaluated(workdir, start)])
    if resumed and start >= run.total and evaluated:
        console.print(
            f"this run has its {run.total} steps already; to go on give a larger --config.steps, to measure it again"
        )
        console.print("use `python -m dream_jax evaluate`")
    else:
        model = drawing.Model(experiment, run.state.ema, run.step, mesh, str(workdir))
        record, columns = measuring.evaluate({workdir.name: model}, pictures, console)
        if chief:
            measuring.show(record, console)
            measuring.write(record, columns, workdir / "evaluation.json", overwrite=False)
            measuring.tell(workdir / "evaluation.json", console)
            run.copies.update()
    return run.state


def _is_evaluated(workdir, step):
    """Whether the evaluation that follows the last step was written to its end."""
    files = measuring.files(workdir / "evaluation.json")
    try:
        # The pictures come after the tables; a run to whose last step some were added has an older table.
        return json.loads(files["table"].read_text())["step"] == step and files["pictures"].exists()
    except (OSError, ValueError, KeyError):
        return False


def _make_sampler(experiment, pictures, mesh):
    """`sampler(params) -> grid`: the pictures that training shows, always of the same inputs and noise."""
    config = experiment.config
    draw, key = drawing.make_draw(experiment, mesh), drawing.make_key(config.evaluation.seeds[0])
    rows = drawing.make_rows(experiment, config.samples.sampler, config.samples.steps)
    shown, size = pictures[: config.samples.count], config.evaluation.batch_size
    if not experiment.task.paired:
        inputs = drawing.no_inputs(config.samples.count, *pictures.shape[1:3])
    else:
        low, cond, enlarged = drawing.degraded(experiment, shown)
        inputs = drawing.inputs_of(experiment, cond, low)

    def sampler(params):
        drawn = drawing.draw_pictures(draw, params, inputs, rows, key, mesh, size)
        if not experiment.task.paired:
            across = min(4, len(drawn))
            columns = {f"sample {i + 1}": drawn[i::across][: len(drawn) // across] for i in range(across)}
            return grids.grid(columns)
        label = measuring.label(config, config.samples.sampler, config.samples.steps)
        return measuring.comparison(experiment, low, enlarged, {label: drawn}, shown)

    return sampler

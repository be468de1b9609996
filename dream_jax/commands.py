"""What each command does: functions of its parsed options, the config arguments that are left, and the console.

Each imports what it needs, so that no command waits for what only others need.
"""

import math
from pathlib import Path

from rich.console import Console

from dream_jax.errors import UserError


def train(options, arguments, console: Console) -> None:
    """Trains from a config file, then evaluates."""
    from dream_jax.config import checks, command_line
    from dream_jax.runtime import processes
    from dream_jax.training import workdir as workdirs

    given = {"path": options.init_from, "checkpoint": options.checkpoint, "partial": options.partial or None}
    named = [f"--config.init.{key}={value}" for key, value in given.items() if value is not None]
    config = command_line.override(command_line.load(options.config), [*named, *arguments])
    config = workdirs.with_classes(config)
    checks.validate(config)
    processes.join(config)
    import jax

    train_and_evaluate(config, options.workdir, Console(quiet=True) if jax.process_index() else console)


def train_and_evaluate(config, workdir, console: Console, evaluates: bool = True):
    """Trains to `config.steps`, going on by itself from the newest checkpoint in the workdir, then evaluates.

    Args:
      config: of `command_line.load` and `override`.
      workdir: a local folder; docs/operations.md says what it holds.
      evaluates: False only trains.

    Returns the TrainState after the last step.
    """
    import jax

    from dream_jax.config import checks
    from dream_jax.runtime import lock, sharding
    from dream_jax.training import mirror
    from dream_jax.training.workdir import check_local, check_same, make_workdir, with_classes, with_range

    workdir = Path(workdir)
    config = checks.validate(with_range(checks.validate(with_classes(config)), workdir))
    sharding.check_batch(config.batch_size, config.accumulation, jax.device_count())
    directory = config.checkpoint.directory
    mirror.check(directory)
    if jax.process_index():
        return _train_and_evaluate(config, workdir, console, evaluates)
    check_local(workdir)
    with lock.hold(workdir, console.print):
        if directory is not None:
            mirror.bring_back(workdir, directory, lambda there: check_same(there, config), console.print)
        make_workdir(workdir, config)
        return _train_and_evaluate(config, workdir, console, evaluates)


def _train_and_evaluate(config, workdir, console, evaluates):
    from dream_jax.config import records
    from dream_jax.data import held_out, sources
    from dream_jax.data.indexed import images_of
    from dream_jax.evaluation import measuring, sample_grids
    from dream_jax.experiment import build
    from dream_jax.runtime import consensus, sharding
    from dream_jax.training import loop, screen
    from dream_jax.training.run import open_run
    from dream_jax.training.workdir import as_begun

    consensus.synchronise("workdir")
    config = as_begun(workdir, config, console.print)
    experiment = build(config)
    source, pictures = sources.open_source(config, "train"), held_out.eval_pictures(config)
    if evaluates:
        measuring.check_learned(config.evaluation)
    if evaluates and not config.evaluation.whole:
        measuring.check_held_out(experiment, images_of(pictures))
    mesh = sharding.make_mesh(config.mesh.shard)
    run = open_run(experiment, source, mesh, workdir, console.print)
    if run.chief:
        # Only now: a run that failed at its data leaves no config that the mended one would have to agree with.
        records.save(config, workdir / "config.json")
        run.copies.update()
    begun_at = run.step
    screen.introduce(console, run, pictures, mesh)
    loop.loop(run, sample_grids.make_sampler(experiment, pictures, mesh), console)
    if evaluates:
        _evaluate_run(run, begun_at, pictures, mesh, console)
    return run.state


def _evaluate_run(run, begun_at, pictures, mesh, console):
    """Evaluates a run that has come to its end, unless it was there already and is evaluated."""
    from dream_jax import objectives
    from dream_jax.data import sources
    from dream_jax.evaluation import measuring, plots, sample_grids, tables, whole
    from dream_jax.files import images
    from dream_jax.inference.drawing import Model
    from dream_jax.runtime import consensus
    from dream_jax.training import run_log

    output = run.workdir / "evaluation.json"
    # Only process 0 is sure to see the workdir.
    (evaluated,) = consensus.of_first([run.chief and tables.is_written(output, begun_at)])
    if run.resumed and begun_at >= run.total and evaluated:
        console.print(
            f"this run has its {run.total} steps already; to go on give a larger --config.steps, to measure it again"
        )
        console.print("use `python -m dream_jax evaluate`")
        return
    if run.chief:
        weight = objectives.weight_over_levels(run.experiment.config.objective, run.experiment.schedule)
        plots.training(run_log.lines(run.workdir), weight, run.workdir / "training.png")
        drawn = sample_grids.over_training(run.workdir / "samples")
        if drawn is not None:
            images.write(run.workdir / "samples.png", drawn, overwrite=True)
    models = {run.workdir.name: Model(run.experiment, run.average(), run.step, mesh, str(run.workdir))}
    if run.config.evaluation.whole:
        record, columns = whole.evaluate(models, sources.open_source(run.config, "eval"), console)
    else:
        record, columns = measuring.evaluate(models, pictures, console)
    if run.chief:
        tables.show(record, console)
        tables.write(record, columns, output, overwrite=False)
        tables.tell(output, console)
        run.copies.update()


def evaluate(options, arguments, console: Console) -> None:
    """Measures trained models: the table, the gap, or starting noises."""
    from dream_jax.files import names
    from dream_jax.inference import trained

    places = [*map(_workdir, options.workdir), *map(_model, options.model)]
    finding = options.find_start is not None
    if finding and (options.gap or len(places) > 1 or options.find_start < 1):
        raise UserError("--find_start takes a number of at least 1, and one --workdir, without --gap")
    if options.pictures and (options.gap or finding):
        raise UserError("--pictures is for the table, without --gap and --find_start")
    if options.low and not options.pictures:
        raise UserError("--low is for what lies beside --pictures")
    if not places:
        raise UserError("give --workdir RUN or --model FOLDER, or several")
    if not options.output and (options.model or len(places) > 1):
        what = "several runs" if len(places) > 1 else "nothing is written into a model's folder"
        raise UserError(f"{what}: say with --output FILE.json where their common table goes")
    kind = "gap" if options.gap else "start" if finding else "evaluation"
    output = Path(options.output or f"{places[0]}/{kind}.json")
    whole = ["--config.evaluation.whole=True"] if options.pictures else []
    arguments = [*whole, *_of_pixels(options), *arguments]
    models = {name: trained.load(place, arguments, options.checkpoint) for name, place in _named(places).items()}
    if not options.pictures:
        _check_pictures(next(iter(models.values())))
    names.check_output(output)
    if finding:
        return _find_start(options, next(iter(models.values())), output, console)
    return (_measure_gap if options.gap else _measure)(options, models, output, console)


def measure(options, arguments, console: Console) -> None:
    """Measures the pictures of one folder against those of another."""
    from dream_jax.config import checks, keys
    from dream_jax.config.command_line import override
    from dream_jax.evaluation import folders
    from dream_jax.files import names
    from dream_jax.files.picture import Reading

    config = override(keys.defaults(), [*_of_pixels(options), *arguments])
    for key, value in keys.flatten(config).items():
        if value != keys.KEYS[key].default and not key.startswith("evaluation."):
            raise UserError(f"--config.{key}: there is no model here; only --config.evaluation.KEY=VALUE can be chosen")
    checks.validate(config)
    output = options.output and Path(options.output)
    if output:
        names.check_output(output)
    reading = Reading(None, None, options.range, options.clip)
    if options.kind != "picture" and config.evaluation.learned:
        raise UserError(f"evaluation.learned: these networks take pictures, not {options.kind}")
    record = folders.measure(options.results, options.originals, config.evaluation, console, reading, options.kind)
    folders.show(record, console)
    if output:
        if not options.overwrite:
            names.set_aside(output, [output, output.with_suffix(".csv")])
        folders.write(record, output)
        console.print(f"table: {output}", markup=False)


def _of_pixels(options):
    given = {"channel": options.channel, "border": options.border}
    return [f"--config.evaluation.{key}={value}" for key, value in given.items() if value is not None]


def _named(places):
    """{name in tables: place}: the folders' own names, or the whole paths where these are not all different."""
    short = [Path(place).resolve().name for place in places]
    names = short if len(set(short)) == len(short) else places
    if len(set(names)) < len(names):
        raise UserError("--workdir or --model names the same one twice")
    return dict(zip(names, places, strict=True))


def _model(place):
    """A place that --model names; raises UserError where there is no model."""
    from dream_jax.training import model_folder

    model_folder.check(place)
    return place


def _workdir(place):
    """A place that --workdir names; raises UserError where that is an exported model."""
    from dream_jax.files import hub
    from dream_jax.training import model_folder

    if hub.is_address(place) or model_folder.is_model(Path(place)):
        raise UserError(f"{place}: is an exported model; give it with --model")
    return place


def _place(options):
    """What a command is given by --workdir or --model."""
    return _workdir(options.workdir) if options.model is None else _model(options.model)


def _check_pictures(model):
    """Raises UserError where the held-out pictures of an exported model would be others without a word."""
    from dream_jax.training import model_folder

    folder, data = model_folder.find(model.workdir), model.experiment.config.data
    if not model_folder.is_model(folder) or data.folder or data.tfds:
        return
    trained_on = model_folder.read_about(folder).get("data")
    if isinstance(trained_on, dict) and trained_on.get("kind") == "folder":
        raise UserError(
            f"{model.workdir}: the pictures that it was trained on are not with it; say what to measure it on with "
            "--pictures FOLDER or --config.data.folder=FOLDER"
        )


def _measure(options, models, output, console):
    from dream_jax.data import held_out, sources
    from dream_jax.evaluation import measuring, tables, whole

    config = next(iter(models.values())).experiment.config
    journal = output.with_name(f"{output.stem}.partial.jsonl")
    if options.pictures or config.evaluation.whole:
        of_folder = options.pictures and whole.folder_source(
            options.pictures, sources.beside_given(config, options.low), sources.reading_of(config)
        )
        source = of_folder or sources.open_source(config, "eval")
        record, columns = whole.evaluate(models, source, console, journal, given=bool(of_folder))
    else:
        record, columns = measuring.evaluate(models, held_out.eval_pictures(config), console, journal)
    tables.show(record, console)
    tables.write(record, columns, output, options.overwrite)
    journal.unlink(missing_ok=True)
    tables.tell(output, console)


def _measure_gap(options, models, output, console):
    from dream_jax.data import held_out
    from dream_jax.evaluation import gap

    pictures = held_out.eval_pictures(next(iter(models.values())).experiment.config)
    record = gap.measure(models, pictures, console)
    gap.show(record, console)
    gap.write(record, output, options.overwrite)
    console.print(f"table: {output}   plot: {output.with_suffix('.png')}", markup=False)


def _find_start(options, model, output, console):
    from dream_jax.data import held_out, indexed
    from dream_jax.evaluation import start_noise
    from dream_jax.files import atomic, names

    config = model.experiment.config
    pictures = held_out.eval_pictures(config, "train")
    count = len(indexed.images_of(pictures))
    ranking = start_noise.find_start(model, pictures, options.find_start, console)
    for entry in ranking[:5]:
        console.print(f"start_seed {entry['start_seed']}: {entry['psnr']:.3f} dB on {count} training pictures")
    mean = sum(entry["psnr"] for entry in ranking) / len(ranking)
    console.print(f"mean of {len(ranking)}: {mean:.3f} dB. Use --config.sampling.start_seed={ranking[0]['start_seed']}")
    if not options.overwrite:
        names.set_aside(output, [output])
    record = {
        "protocol": "find_start",
        "step": model.step,
        "pictures": count,
        "sampler": config.evaluation.samplers[0],
        "steps": config.evaluation.steps[0],
        "side": held_out.side_of(config),
        "ranking": ranking,
    }
    atomic.write_json(output, record)
    console.print(f"ranking: {output}", markup=False)


def restore(options, arguments, console: Console) -> int:
    """Restores pictures; 1 where some failed."""
    from dream_jax.inference import restoring

    return _restore(restoring.restore, options, arguments, console, mask=options.mask)


def upscale(options, arguments, console: Console) -> int:
    """Enlarges pictures; 1 where some failed."""
    from dream_jax.inference import restoring

    return _restore(restoring.upscale, options, arguments, console)


def _restore(function, options, arguments, console, **more):
    from dream_jax.inference.groups import Wanted

    choices = ("sampler", "steps", "seed", "samples", "memory", "tile", "overwrite", "checkpoint", "scale")
    if options.page is not None and options.page < 1:
        raise UserError(f"--page {options.page}: pages are counted from 1")
    return function(
        *(_place(options), options.input, options.output, console),
        wanted=Wanted(options.page, options.range, options.clip),
        suffix=options.format and f".{options.format}",
        overrides=arguments,
        **{name: getattr(options, name) for name in choices},
        **more,
    )


def generate(options, arguments, console: Console) -> None:
    """Makes new pictures."""
    from dream_jax.inference import generation

    choices = ("count", "sampler", "steps", "seed", "batch_size", "size", "overwrite", "checkpoint", "wanted")
    choices = {name: getattr(options, name) for name in choices}
    generation.generate(_place(options), options.output, console=console, overrides=arguments, **choices)


def export(options, arguments, console: Console) -> None:
    """Writes a trained model for use elsewhere."""
    from dream_jax.sharing import exporting

    exporting.export(
        *(_place(options), options.output, console, options.format),
        options={name: getattr(options, name) for name in ("sampler", "steps", "size")},
        weights=options.weights,
        checkpoint=options.checkpoint,
        overwrite=options.overwrite,
        overrides=arguments,
    )


def prepare(options, arguments, console: Console) -> None:
    """Prepares a dataset of the catalog."""
    from dream_jax.data import catalog

    console.print(f"prepared: {catalog.prepare_tfds(options.tfds, options.tfds_dir)}", markup=False)


def keys(options, arguments, console: Console) -> None:
    """Lists the config keys."""
    from dream_jax.config.keys import KEYS

    chosen = {name: key for name, key in KEYS.items() if name.startswith(options.prefix)}
    if not chosen:
        raise UserError(f"no config key begins with {options.prefix!r}")
    for name, key in chosen.items():
        console.print(f"{name} = {key.default!r}  {key.described()}", markup=False, highlight=False)


def cache(options, arguments, console: Console) -> None:
    """Lists what can be made or downloaded again, and removes what is named."""
    import datetime

    from rich.table import Table

    from dream_jax.files import cache as cached

    if options.remove:
        freed = cached.remove(options.remove)
        console.print(f"removed {', '.join(options.remove)}: {freed / 2**20:.1f} MiB", markup=False)
    table = Table("", "MiB", "changed", title=str(cached.root()))
    for entry in cached.entries():
        when = datetime.datetime.fromtimestamp(entry.changed).isoformat(" ", "minutes")
        table.add_row(entry.name, f"{entry.size / 2**20:.1f}", when)
    console.print(table)


def fixed_point(options, arguments, console: Console) -> None:
    """Prints what an objective converges to on Gaussian data, beside the standard one."""
    from ml_collections import ConfigDict
    from rich.table import Table

    from dream_jax import experiment
    from dream_jax.config import checks, command_line
    from dream_jax.evaluation import fixed_point as fixed

    if not all(math.isfinite(variance) and variance > 0 for variance in options.variance):
        raise UserError("--variance takes numbers greater than 0")
    config = command_line.override(command_line.load(options.config), arguments)
    built = experiment.build(checks.validate(config))
    steps = built.schedule.num_steps if options.steps is None else options.steps
    sampling = built.config.sampling
    chosen = {"spacing": sampling.spacing, "eta": sampling.eta, "momentum": sampling.momentum}
    standard = ConfigDict(built.config.objective.to_dict() | {"name": "standard"})
    table = Table(title=f"variance of samples over that of Gaussian data, {options.sampler} {steps}")
    for column in ("variance of the data", "standard", built.objective.title):
        table.add_column(column, justify="right")
    for variance in options.variance:
        ratios = [
            fixed.variance_ratio(built.schedule, settings, variance, options.sampler, steps, **chosen)
            for settings in (standard, built.config.objective)
        ]
        table.add_row(f"{variance:g}", *(f"{ratio:.3f}" for ratio in ratios))
    console.print(table)


def compare(options, arguments, console: Console) -> None:
    """Trains the variants of a comparison, measures them and writes the report."""
    from dream_jax.evaluation import comparison, report
    from dream_jax.files import names
    from dream_jax.runtime import lock

    chosen, workdir = comparison.load(options.config, arguments), Path(options.workdir)
    names.check_folder(workdir)
    with lock.hold(workdir, console.print):
        record = comparison.advance(
            chosen,
            workdir,
            lambda config, folder: train_and_evaluate(config, folder, console, evaluates=False),
            console,
        )
        report.write(record, comparison.runs(chosen, workdir), workdir / "report.html")
    console.print(f"report: {workdir / 'report.html'}   its numbers: {workdir / 'report.json'}", markup=False)

"""The command line: `python -m dream_jax COMMAND ...`."""

import argparse
import errno
import os
import sys
import traceback
from pathlib import Path

from rich.console import Console

from dream_jax.data import sources
from dream_jax.errors import UserError
from dream_jax.runtime import compilation_cache

CONFIG_HELP = "any config key: --config.KEY=VALUE, for example --config.objective.p=None"
SAMPLING_HELP = "how pictures are drawn: --config.sampling.KEY=VALUE, for example --config.sampling.eta=1"
FORMATS = ("png", "jpg", "webp", "tif", "bmp")

# Set by a launcher that starts several processes: processes.py.
_COORDINATOR = "DREAM_JAX_COORDINATOR"

# What the disk may say to any write.
_DISK = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    0 done, 1 some files failed, 2 a mistake to mend, 75 a run that hangs, which may be started again. What a signal
    stopped has 128 + the signal, as shells have it: 130 after Ctrl-C, 143 after SIGTERM; of a training run everything
    done is saved then, and the same command goes on.
    """
    parser = argparse.ArgumentParser("dream_jax", description="Train and use diffusion models with DREAM.")
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train from a config file, then evaluate", epilog=CONFIG_HELP)
    train.add_argument("--config", required=True, help="a file of configs/")
    train.add_argument("--workdir", required=True, help="where the run is kept; an existing one is continued")

    evaluate = commands.add_parser("evaluate", help="measure trained models on held-out pictures", epilog=CONFIG_HELP)
    evaluate.add_argument("--workdir", required=True, nargs="+", help="of the training run; of several, side by side")
    evaluate.add_argument("--output", help="table, JSON, with others beside it (default: WORKDIR/evaluation.json)")
    evaluate.add_argument("--overwrite", action="store_true", help="replace an earlier table")
    evaluate.add_argument("--gap", action="store_true", help="measure what sampling's inputs differ in from training's")
    evaluate.add_argument("--find_start", type=int, metavar="N", help="rank N starting noises shared by all pictures")

    upscale = commands.add_parser(
        "upscale", help="enlarge your own pictures with a trained model", epilog=SAMPLING_HELP
    )
    upscale.add_argument("--workdir", required=True, help="of the training run")
    upscale.add_argument("--input", required=True, help="a picture, or a folder of pictures")
    upscale.add_argument("--output", required=True, help="a picture, or a folder")
    upscale.add_argument("--format", choices=FORMATS, help="of results in a folder (default: that of each picture)")
    upscale.add_argument("--sampler", default="ddim")
    upscale.add_argument("--steps", type=int, default=10, help="network evaluations (default: 10)")
    upscale.add_argument("--seed", type=int, default=0)
    upscale.add_argument("--samples", type=int, default=1, help="results for each picture, of seeds --seed and up")
    upscale.add_argument(
        "--memory", type=float, metavar="GIB", help="most that the program may take (default: half of what is free)"
    )
    upscale.add_argument("--tile", type=int, metavar="PIXELS", help="side of tiles, instead of one found by --memory")
    upscale.add_argument("--overwrite", action="store_true", help="replace existing results")

    generate = commands.add_parser("generate", help="make new pictures with a trained model", epilog=CONFIG_HELP)
    generate.add_argument("--workdir", required=True, help="of the training run")
    generate.add_argument("--output", required=True, help="a folder; what is there already is not made again")
    generate.add_argument("--count", type=int, default=64, help="pictures (default: 64)")
    generate.add_argument("--sampler", default="ddim")
    generate.add_argument("--steps", type=int, default=50, help="network evaluations (default: 50)")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--batch_size", type=int, default=16, help="pictures at once (default: 16)")
    generate.add_argument("--overwrite", action="store_true", help="make them again")

    prepare = commands.add_parser("prepare", help="prepare a dataset of the TensorFlow Datasets catalog")
    prepare.add_argument("--tfds", required=True, metavar="NAME", help="celeb_a, cifar10, div2k/bicubic_x4, ...")
    prepare.add_argument("--tfds_dir", help="where datasets are kept (default: ~/tensorflow_datasets)")

    options, rest = parser.parse_known_args(arguments)
    if rest and options.command == "prepare":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    console = Console(soft_wrap=True)
    try:
        if options.command != "prepare":
            chief = os.environ.get("DREAM_JAX_PROCESS", "0") == "0"
            compilation_cache.use(lambda message: console.print(message, markup=False) if chief else None)
        return globals()[f"_{options.command}"](options, rest, console) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = error.filename or getattr(options, "output", None) or getattr(options, "workdir", "")
        print(f"error: {where}: a file cannot be written ({error.strerror}); mend it and repeat", file=sys.stderr)
        status = 2
    except KeyboardInterrupt as stopped:
        return getattr(stopped, "status", 130)
    except Exception:
        if _COORDINATOR not in os.environ:
            raise
        traceback.print_exc()
        status = 1
    if _COORDINATOR in os.environ:
        # The usual way out waits for the other processes, and they for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


# JAX is imported by the commands, not above: `--help` and a mistyped option answer at once.


def _train(options, rest, console):
    from dream_jax import config
    from dream_jax.runtime import processes
    from dream_jax.training import loop

    chosen = config.override(config.load(options.config), rest)
    config.validate(chosen)
    processes.join(chosen)
    import jax

    if jax.process_index():
        console = Console(quiet=True)
    loop.train_and_evaluate(chosen, options.workdir, console)


def _evaluate(options, rest, console):
    from dream_jax import experiment
    from dream_jax.evaluation import gap, measuring
    from dream_jax.files import results
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
    results.check_output(output)
    model = next(iter(models.values()))
    if finding:
        return _find_start(options, model, output, console)
    pictures = experiment.eval_pictures(model.experiment.config)
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
    from dream_jax import experiment
    from dream_jax.evaluation import measuring
    from dream_jax.files import results

    config = model.experiment.config
    pictures = experiment.eval_pictures(config, "train")
    ranking = measuring.find_start(model, pictures, options.find_start, console)
    for entry in ranking[:5]:
        console.print(f"start_seed {entry['start_seed']}: {entry['psnr']:.3f} dB on {len(pictures)} training pictures")
    mean = sum(entry["psnr"] for entry in ranking) / len(ranking)
    console.print(f"mean of {len(ranking)}: {mean:.3f} dB. Use --config.sampling.start_seed={ranking[0]['start_seed']}")
    if not options.overwrite:
        results.set_aside(output, [output])
    settings = {
        "sampler": config.evaluation.samplers[0],
        "steps": config.evaluation.steps[0],
        "side": experiment.eval_side(config),
    }
    about = {"protocol": "find_start", "step": model.step, "pictures": len(pictures), **settings}
    results.write_json(about | {"ranking": ranking}, output)
    console.print(f"ranking: {output}", markup=False)


def _upscale(options, rest, console):
    from dream_jax.inference import upscaling

    names = "sampler", "steps", "seed", "samples", "memory", "tile", "overwrite"
    choices = {name: getattr(options, name) for name in names}
    suffix = options.format and f".{options.format}"
    return upscaling.upscale(
        options.workdir, options.input, options.output, console, suffix=suffix, overrides=rest, **choices
    )


def _generate(options, rest, console):
    from dream_jax.inference import generation

    names = ("count", "sampler", "steps", "seed", "batch_size", "overwrite")
    choices = {name: getattr(options, name) for name in names}
    generation.generate(options.workdir, options.output, console=console, overrides=rest, **choices)


def _prepare(options, rest, console):

    console.print(f"prepared: {sources.prepare_tfds(options.tfds, options.tfds_dir)}")


if __name__ == "__main__":
    sys.exit(main())

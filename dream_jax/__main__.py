"""The command line: `python -m dream_jax COMMAND ...`."""

import argparse
import os
import sys
import traceback
from pathlib import Path

from rich.console import Console

from dream_jax.errors import UserError

CONFIG_HELP = "any config key: --config.KEY=VALUE, for example --config.objective.p=None"
SAMPLING_HELP = "how pictures are drawn: --config.sampling.KEY=VALUE, for example --config.sampling.eta=1"
FORMATS = ("png", "jpg", "webp", "tif", "bmp")

# A launcher that starts several processes sets it to the address at which they meet.
_COORDINATOR = "DREAM_JAX_COORDINATOR"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 some files failed, 2 a mistake to mend."""
    parser = argparse.ArgumentParser("dream_jax", description="Train and use diffusion models with DREAM.")
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train from a config file, then evaluate", epilog=CONFIG_HELP)
    train.add_argument("--config", required=True, help="a file of configs/")
    train.add_argument("--workdir", required=True, help="where the run is kept; an existing one is continued")

    evaluate = commands.add_parser("evaluate", help="measure a trained model on held-out pictures", epilog=CONFIG_HELP)
    evaluate.add_argument("--workdir", required=True, help="of the training run")
    evaluate.add_argument("--output", help="table, JSON, with a .png beside it (default: WORKDIR/evaluation.json)")
    evaluate.add_argument("--overwrite", action="store_true", help="replace an earlier table")

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
        "--memory", type=float, metavar="GIB", help="most that drawing may take (default: half of what is free)"
    )
    upscale.add_argument("--tile", type=int, metavar="PIXELS", help="side of tiles, instead of one found by --memory")
    upscale.add_argument("--overwrite", action="store_true", help="replace existing results")

    prepare = commands.add_parser("prepare", help="prepare a dataset of the TensorFlow Datasets catalog")
    prepare.add_argument("--tfds", required=True, metavar="NAME", help="celeb_a, cifar10, div2k/bicubic_x4, ...")
    prepare.add_argument("--tfds_dir", help="where datasets are kept (default: ~/tensorflow_datasets)")

    options, rest = parser.parse_known_args(arguments)
    if rest and options.command == "prepare":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    console = Console(soft_wrap=True)
    try:
        return globals()[f"_{options.command}"](options, rest, console) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        return 130
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
    from dream_jax import config, train

    chosen = config.override(config.load(options.config), rest)
    config.validate(chosen)
    _start_processes(chosen.mesh.shard)
    import jax

    if jax.process_index():
        console = Console(quiet=True)
    train.train_and_evaluate(chosen, options.workdir, console)


def _start_processes(shard):
    """Joins the processes of this run, where a launcher started several."""
    if _COORDINATOR not in os.environ:
        return
    import jax

    from dream_jax import sharding

    jax.distributed.initialize(
        os.environ[_COORDINATOR],
        num_processes=int(os.environ["DREAM_JAX_PROCESSES"]),
        process_id=int(os.environ["DREAM_JAX_PROCESS"]),
    )
    sharding.meet(sharding.make_mesh(shard))


def _evaluate(options, rest, console):
    from dream_jax import evaluate, experiment, trained

    output = Path(options.output or f"{options.workdir}/evaluation.json")
    if options.output:
        evaluate.check_output(output)
    model = trained.load(options.workdir, rest)
    pictures = experiment.eval_pictures(model.experiment.config)
    record, grid = evaluate.evaluate(model.experiment, model.params, pictures, model.mesh, console)
    record["step"] = model.step
    evaluate.show(record, console)
    evaluate.write(record, grid, output, options.overwrite)
    console.print(f"table: {output}   picture: {output.with_suffix('.png')}")


def _upscale(options, rest, console):
    from dream_jax import upscale

    names = "sampler", "steps", "seed", "samples", "memory", "tile", "overwrite"
    choices = {name: getattr(options, name) for name in names}
    suffix = options.format and f".{options.format}"
    return upscale.upscale(
        options.workdir, options.input, options.output, console, suffix=suffix, overrides=rest, **choices
    )


def _prepare(options, rest, console):
    from dream_jax import data

    console.print(f"prepared: {data.prepare_tfds(options.tfds, options.tfds_dir)}")


if __name__ == "__main__":
    sys.exit(main())

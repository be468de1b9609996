"""The command line: `python -m dream_jax COMMAND ...`."""

import argparse
import difflib
import errno
import functools
import math
import os
import sys
import traceback

from rich.console import Console

from dream_jax.errors import UserError, shown
from dream_jax.runtime import compilation_cache, garbage, platforms, processes

CONFIG_HELP = "any config key: --config.KEY=VALUE, for example --config.objective.p=None"
SAMPLING_HELP = "how pictures are drawn: --config.sampling.KEY=VALUE, for example --config.sampling.eta=1"
MODEL_HELP = "an exported model: its folder, or hf://OWNER/NAME[@REVISION]"
FORMATS = ("png", "jpg", "webp", "tif", "bmp")

# Commands that take no config arguments, and compile nothing.
_PLAIN = ("prepare", "keys", "cache")

# What a command line holds without dashes.
_NO_OPTIONS = ("command", "prefix", "results", "originals")

# What the disk may say to any write.
_DISK = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    0 done, 1 some files failed, 2 a mistake to mend, 75 a run that hangs, which may be started again. After a signal
    the status is 128 + the signal, as in shells: 130 after Ctrl-C, 143 after SIGTERM; a training run has then saved
    all that it has done, and the same command goes on.
    """
    options, rest = _parser().parse_known_args(arguments)
    try:
        _check_options(options, rest)
        return _run(options, rest)
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
        if not processes.several():
            raise
        traceback.print_exc()
        status = 1
    if processes.several():
        # The usual way out waits for the other processes, and they for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _check_options(options, rest) -> None:
    """Raises UserError for an argument that is no option of the command, with the nearest one."""
    for argument in rest:
        name = argument.partition("=")[0]
        if name.startswith("--") and (options.command in _PLAIN or not name.startswith("--config.")):
            known = [f"--{option}" for option in vars(options) if option not in _NO_OPTIONS]
            known += [] if options.command in _PLAIN else ["--config.KEY=VALUE"]
            near = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.6) or known
            meant = f"did you mean {' or '.join(near)}?" if near else "it has none"
            raise UserError(f"{shown(name)[:200]}: not an option of {options.command}; {meant}")
    if rest and options.command in _PLAIN:
        raise UserError(f"{shown(rest[0])[:200]}: {options.command} takes no more arguments")


def _run(options, rest) -> int:
    console = Console(soft_wrap=True)

    def tell(message):
        if processes.is_first():
            console.print(message, markup=False)

    if options.command not in _PLAIN:
        # The processes of a run join before they look at devices.
        if not processes.several():
            platforms.check()
        compilation_cache.use(tell)
    # Only now: `--help` and a mistyped option are answered at once.
    from dream_jax import commands

    return getattr(commands, options.command)(options, rest, console) or 0


def _parser() -> argparse.ArgumentParser:
    # Not abbreviated: --step would be taken for --steps of a command that has it.
    whole = functools.partial(argparse.ArgumentParser, allow_abbrev=False)
    parser = whole("dream_jax", description="Train and use diffusion models with DREAM.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=whole)

    train = commands.add_parser("train", help="train from a config file, then evaluate", epilog=CONFIG_HELP)
    train.add_argument("--config", required=True, help="a recipe, like quickstart, or a config file")
    train.add_argument("--workdir", required=True, help="where the run is kept; an existing one is continued")
    train.add_argument(
        "--init_from", metavar="PLACE", help="begin with the weights of this workdir, model or file: init.path"
    )
    train.add_argument("--partial", action="store_true", help="arrays that do not fit begin at random: init.partial")
    _add_checkpoint(train, "of --init_from: init.checkpoint", default=None)

    _add_evaluate(commands)
    _add_measure(commands)

    restore = _add_restore(commands, "restore", "restore your own pictures with a trained model, whatever its task")
    restore.add_argument(
        "--mask", metavar="PLACE", help="inpainting: a mask, white where there is to be painted, or a folder of them"
    )
    _add_restore(commands, "upscale", "enlarge your own pictures with a trained model")

    generate = commands.add_parser("generate", help="make new pictures with a trained model", epilog=CONFIG_HELP)
    _add_place(generate)
    generate.add_argument("--output", required=True, help="a folder; what is there already is not made again")
    generate.add_argument("--count", type=int, default=64, help="pictures (default: 64)")
    generate.add_argument("--sampler", default="ddim", help="one of docs/sampling.md (default: ddim)")
    generate.add_argument("--steps", type=int, default=50, help="network evaluations (default: 50)")
    generate.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    generate.add_argument("--size", metavar="HxW", help="height and width in pixels (default: as in training)")
    generate.add_argument(
        "--class",
        dest="wanted",
        metavar="NAME",
        help="names or numbers of classes: A,B (default: each in turn)",
    )
    generate.add_argument("--batch_size", type=int, default=16, help="pictures at once (default: 16)")
    _add_checkpoint(generate, "of the run (default: latest)")
    generate.add_argument("--overwrite", action="store_true", help="make them again")

    _add_export(commands)
    _add_studies(commands)
    _add_upkeep(commands)
    return parser


def _add_evaluate(commands) -> None:
    evaluate = commands.add_parser("evaluate", help="measure trained models on held-out pictures", epilog=CONFIG_HELP)
    evaluate.add_argument("--workdir", nargs="+", default=[], help="of the training run; of several, side by side")
    evaluate.add_argument("--model", nargs="+", default=[], help=f"{MODEL_HELP}, or several")
    evaluate.add_argument(
        "--output",
        help="table, JSON, with others beside it (default: evaluation.json in the workdir, or gap.json or start.json)",
    )
    evaluate.add_argument("--pictures", metavar="FOLDER", help="measure on these whole pictures, of any size, instead")
    evaluate.add_argument(
        "--low", metavar="FOLDER", help="what lies beside them: low-resolution pictures, masks, conditions"
    )
    _add_checkpoint(evaluate, "of the run (default: latest)")
    evaluate.add_argument("--overwrite", action="store_true", help="replace an earlier table")
    evaluate.add_argument("--channel", choices=("rgb", "y"), help="of PSNR and SSIM: evaluation.channel")
    evaluate.add_argument("--border", type=int, help="pixels cut off at each side for them: evaluation.border")
    evaluate.add_argument("--gap", action="store_true", help="measure what sampling's inputs differ in from training's")
    evaluate.add_argument("--find_start", type=int, metavar="N", help="rank N starting noises shared by all pictures")


def _add_restore(commands, name, what) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, epilog=SAMPLING_HELP)
    _add_place(parser)
    parser.add_argument("--input", required=True, nargs="+", help="a picture or a folder of pictures, or several")
    parser.add_argument("--output", required=True, help="a picture, or a folder")
    parser.add_argument("--format", choices=FORMATS, help="of results in a folder (default: that of each picture)")
    parser.add_argument("--sampler", default="ddim", help="one of docs/sampling.md (default: ddim)")
    parser.add_argument("--steps", type=int, default=10, help="network evaluations (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--samples", type=int, default=1, help="results for each picture, of seeds --seed and up")
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help="most that the program may take (default: half of what is free)"
    )
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="side of tiles, instead of one found by --memory")
    parser.add_argument("--scale", type=float, help="super-resolution: how many times larger (default: as trained)")
    parser.add_argument("--page", type=int, help="of files with several pages, from 1 (default: all)")
    _add_range(parser)
    _add_checkpoint(parser, "of the run (default: latest)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    return parser


def _add_place(parser) -> None:
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--workdir", help="of the training run")
    place.add_argument("--model", help=MODEL_HELP)


def _add_export(commands) -> None:
    export = commands.add_parser("export", help="write a trained model for use elsewhere", epilog=CONFIG_HELP)
    _add_place(export)
    export.add_argument("--output", required=True, help="a folder; of pytorch_sr3 a file, .safetensors or .pth")
    export.add_argument(
        "--format",
        choices=("dream", "pytorch_sr3", "stablehlo"),
        default="dream",
        help="a folder for --model; weights for the official PyTorch code; a program of one sampler (default: dream)",
    )
    export.add_argument("--weights", choices=("ema", "live"), help="averaged, or the last step's own (default: ema)")
    _add_checkpoint(export, "of the run (default: latest)")
    export.add_argument("--overwrite", action="store_true", help="replace what is there")
    export.add_argument("--sampler", help="stablehlo: one of docs/sampling.md (default: ddim)")
    export.add_argument("--steps", type=int, help="stablehlo: network evaluations (default: 10)")
    export.add_argument(
        "--size",
        metavar="HxW",
        help="stablehlo: height and width of the low-resolution picture, or of the picture where the model generates "
        "(default: as in training)",
    )


def _add_measure(commands) -> None:
    measure = commands.add_parser("measure", help="measure one folder of pictures against another", epilog=CONFIG_HELP)
    measure.add_argument("results", help="a folder of pictures")
    measure.add_argument("originals", help="another one: pairs by name, else two sets")
    measure.add_argument("--output", help="table, JSON, with the values of each pair beside it as CSV")
    measure.add_argument("--overwrite", action="store_true", help="replace an earlier table")
    _add_range(measure)
    measure.add_argument(
        "--as", dest="kind", choices=("picture", "depth", "classes"), default="picture", help="what they are"
    )
    measure.add_argument("--channel", choices=("rgb", "y"), help="of PSNR and SSIM: evaluation.channel")
    measure.add_argument("--border", type=int, help="pixels cut off at each side for them: evaluation.border")


def _add_range(parser) -> None:
    parser.add_argument(
        "--range", type=_span, metavar="LOW,HIGH", help="what means black and white in files of more than 8 bits"
    )
    parser.add_argument("--clip", action="store_true", help="cut off values outside the range, instead of refusing")


def _span(text) -> tuple[float, float]:
    low, high = (float(part) for part in text.split(","))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError
    return low, high


# What argparse says of other values.
_span.__name__ = "LOW,HIGH"


def _add_checkpoint(parser, what, default="latest") -> None:
    parser.add_argument("--checkpoint", metavar="WHICH", default=default, help=f"latest, best or a step, {what}")


def _add_upkeep(commands) -> None:
    """The commands that need no model."""
    prepare = commands.add_parser("prepare", help="prepare a dataset of the TensorFlow Datasets catalog")
    prepare.add_argument("--tfds", required=True, metavar="NAME", help="celeb_a, cifar10, div2k/bicubic_x4, ...")
    prepare.add_argument("--tfds_dir", help="where datasets are kept (default: ~/tensorflow_datasets)")

    cache = commands.add_parser("cache", help="list prepared pictures, compiled programs and metrics' weights")
    cache.add_argument("--remove", nargs="+", metavar="NAME", help="remove these, which are made again when needed")
    keys = commands.add_parser("keys", help="list the config keys, with their defaults")
    keys.add_argument("prefix", nargs="?", default="", help="of the keys to list, like sampling")


def _add_studies(commands) -> None:
    """The commands that ask what an objective is worth."""
    compare = commands.add_parser(
        "compare", help="train variants side by side and report which is better, and when", epilog=CONFIG_HELP
    )
    compare.add_argument("--config", required=True, help="a config file that defines get_comparison() too")
    compare.add_argument(
        "--workdir", required=True, help="where runs and report are kept; an existing one is continued"
    )

    fixed = commands.add_parser(
        "fixed_point", help="tell how much variance an objective leaves in samples", epilog=CONFIG_HELP
    )
    fixed.add_argument("--config", required=True, help="a recipe, like quickstart, or a config file")
    fixed.add_argument("--variance", type=float, nargs="+", default=[0.05, 0.33, 1.0], help="of Gaussian data")
    fixed.add_argument("--sampler", default="ddpm", help="one of docs/sampling.md (default: ddpm)")
    fixed.add_argument("--steps", type=int, help="network evaluations (default: all of the noise schedule)")


if __name__ == "__main__":
    garbage.collect_seldom()
    sys.exit(main())

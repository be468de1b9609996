"""Folders of pictures, prepared once into ArrayRecord datasets."""

import collections
import contextlib
import functools
import hashlib
import io
import itertools
import os
import shutil
import stat
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dream_jax.data.catalog import builder_source
from dream_jax.data.indexed import Source
from dream_jax.errors import UserError, shown
from dream_jax.files import cache, decoding, images, listings

# Pixels beyond which pictures are prepared one after the other.
_LARGE = 2**24


class Pictures(tfds.core.GeneratorBasedBuilder):
    """The dataset that a folder becomes. examples: {split: iterator of (key, example)}, in the order to be kept."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, examples, **options):
        self._examples = examples
        super().__init__(**options)

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), dtype=np.uint8, encoding_format="png"),
            "name": tfds.features.Text(),
            "top": np.int64,
            "left": np.int64,
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return self._examples

    def _generate_examples(self):
        raise NotImplementedError("the splits are given to the constructor")


def prepare_folder(
    folder,
    *,
    crop: int,
    eval_folder=None,
    cache_dir=None,
    resize: int | None = None,
    skip_unreadable: bool = False,
    eval_percent: float = 10.0,
    whole: bool = False,
) -> Path:
    """Makes a folder of pictures into an ArrayRecord dataset with the splits "train" and "eval"; returns its path.

    It is made once, under cache_dir (default: `cache.root()`), in a folder named after the files' names, sizes and
    times and these arguments, so a folder that changed is prepared anew. It appears there only when complete, and the
    first of several processes that prepare the same one wins.

    eval is all of eval_folder, whose files are then never in train, or about eval_percent of the folder: by a CRC-32 of
    each file's name, so adding files moves none. With resize, the shorter side becomes that many pixels. Evaluation
    pictures are kept whole; training pictures longer than 4 * crop are cut by `tiles`, since decoding a large PNG for
    every crop is slow. `whole` keeps these whole, too.

    Raises UserError if no picture is left, the cache cannot be written, or, unless skip_unreadable, a picture cannot be
    read or is smaller than the crop: all of them are named.
    """
    folder = Path(folder).expanduser()
    eval_folder = eval_folder and Path(eval_folder).expanduser()
    splits = _split_files(folder, eval_folder, eval_percent)
    settings = (crop, resize, skip_unreadable, str(Pictures.VERSION), *(["whole"] if whole else []))
    digest = hashlib.sha256(repr(settings).encode())
    for split, files in splits.items():
        for name, path in files.items():
            digest.update(repr((split, name, *_size_and_time(path))).encode())
    parent = Path(cache_dir).expanduser() if cache_dir else cache.root()
    prepared = parent / f"{shown(folder.resolve().name)}-{digest.hexdigest()[:16]}"
    if not prepared.exists():
        unfinished = None
        try:
            parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
            _warn_of_duplicates(splits)
            made = _write(splits, unfinished, crop, resize, skip_unreadable, whole)
            try:
                os.rename(made, prepared)
            except OSError:  # another process was first, with the same files
                if not prepared.exists():
                    raise
            said = f"prepared pictures of {shown(folder)}: {cache.size_of(prepared) / 2**20:.1f} MiB in {prepared}"
            listed = "" if cache_dir else "; `python -m dream_jax cache` lists and removes such folders"
            print(f"{said}{listed}", file=sys.stderr)
        except OSError as error:
            raise UserError(
                f"data.cache_dir: prepared pictures cannot be written to {parent} ({error}); choose another folder "
                "there or in DREAM_JAX_CACHE"
            ) from error
        finally:
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)
    return prepared


def tiles(size: int, crop: int) -> list[tuple[int, int]]:
    """Intervals (start, stop) of at most 4 * crop that overlap by crop - 1 and hold each crop of `size` in exactly one.

    The size - crop + 1 places where a crop can start are shared out evenly: a tile serves at most 3 * crop + 1 of them.
    """
    starts = size - crop + 1
    count = -(-starts // (3 * crop + 1))
    edges = [starts * i // count for i in range(count + 1)]
    return [(a, b + crop - 1) for a, b in itertools.pairwise(edges)]


def _size_and_time(path):
    """Of a picture file; None and None of what cannot be one: links to nowhere or in a circle, pipes, folders."""
    with contextlib.suppress(OSError):
        about = path.stat()
        if stat.S_ISREG(about.st_mode):
            return about.st_size, about.st_mtime_ns
    return None, None


def _split_files(folder, eval_folder, eval_percent):
    """{"train": {name: path}, "eval": {name: path}}: names relative to their folder, in order."""
    files = {Path(path).relative_to(folder).as_posix(): Path(path) for path in listings.list_pictures(folder)}
    if eval_folder is not None:
        held_out = {Path(p).relative_to(eval_folder).as_posix(): Path(p) for p in listings.list_pictures(eval_folder)}
        # The one may lie inside the other.
        never_train = {os.path.realpath(path) for path in held_out.values()}
        train = {name: path for name, path in files.items() if os.path.realpath(path) not in never_train}
        if not train:
            raise UserError(
                f"data.folder: every picture of {shown(folder)} is also in data.eval_folder {shown(eval_folder)}"
            )
        return {"train": train, "eval": held_out}
    if len(files) < 2:
        raise UserError(
            f"data.folder: {shown(folder)} has one picture; to hold one out it needs two, or set data.eval_folder"
        )
    by_crc = sorted(files, key=lambda name: (zlib.crc32(os.fsencode(name)), name))
    below = sum(zlib.crc32(os.fsencode(name)) < eval_percent / 100 * 2**32 for name in files)
    chosen = set(by_crc[: min(max(below, 1), len(files) - 1)])
    return {
        "train": {name: path for name, path in files.items() if name not in chosen},
        "eval": {name: path for name, path in files.items() if name in chosen},
    }


def _warn_of_duplicates(splits):
    """Files of the two splits with the same bytes; only those of equal size are read."""

    def digest(path):
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return path

    train, held_out = (
        [(_size_and_time(path)[0] or 0, path) for path in splits[split].values()] for split in ("train", "eval")
    )
    # What is no picture is not read: it may have no end.
    common = {size for size, _ in train if 0 < size <= decoding.MOST_BYTES} & {size for size, _ in held_out}
    trained_on = {digest(path): path for size, path in train if size in common}
    found = [(path, trained_on.get(digest(path))) for size, path in held_out if size in common]
    same = [f"{shown(path)} = {shown(other)}" for path, other in found if other is not None]
    if same:
        _warn(f"{len(same)} evaluation pictures are also trained on, byte for byte: {_first(same)}")


def _write(splits, unfinished, crop, resize, skip_unreadable, whole):
    left_out, total = [], sum(len(files) for files in splits.values())
    # A few threads: decoding and encoding release the interpreter's lock, and each holds a whole picture.
    threads = min(os.cpu_count() or 1, 8)
    with _progress_bar(total) as advance, ThreadPoolExecutor(threads) as pool:

        def examples(split):
            some = False
            make = functools.partial(_examples_of, crop=crop, resize=resize, whole=whole or split == "eval")
            for found, problem in in_order(pool, make, splits[split].items(), 2 * threads, _is_large):
                some |= bool(found)
                if problem:
                    left_out.append(problem)
                yield from found
                advance()
            _check_left_out(split, some, left_out, total, skip_unreadable)

        builder = Pictures(
            data_dir=unfinished, file_format="array_record", examples={split: examples(split) for split in splits}
        )
        tfds.display_progress_bar(False)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it announces a download, to the unfinished folder
                builder.download_and_prepare()
        finally:
            tfds.display_progress_bar(True)
    if left_out:
        _warn(f"{len(left_out)} of {total} pictures are left out: {_first(left_out)}")
    return Path(builder.data_dir)


def _examples_of(item, crop, resize, whole):
    """([(key, example)] of a file's tiles, None), or ([], why there are none); `whole` makes one of the picture."""
    name, path = item
    try:
        picture = images.read(path)
    except UserError as error:
        return [], str(error)
    try:
        if resize is not None:
            picture = images.resize_shorter_side(picture, resize)
    except UserError as error:
        return [], f"{shown(path)}: {error}"
    height, width = picture.shape[:2]
    if min(height, width) < crop:
        return [], f"{shown(path)}: {width}x{height} is smaller than the crop of {crop}"
    rows, columns = ([(0, size)] if whole else tiles(size, crop) for size in (height, width))
    found = []
    for (top, bottom), (left, right) in itertools.product(rows, columns):
        png = io.BytesIO()
        # Level 1 is written three times faster than the default, read nearly as fast, and 2% larger.
        Image.fromarray(picture[top:bottom, left:right]).save(png, "PNG", compress_level=1)
        # A name may be any bytes, a text may not.
        example = {"image": png.getvalue(), "name": shown(name), "top": top, "left": left}
        found.append((f"{os.fsencode(name)!r} {top} {left}", example))
    return found, None


def _is_large(item):
    # A large picture takes up to a GiB.
    return images.claimed_pixels(item[1]) > _LARGE


def _check_left_out(split, some, left_out, total, skip_unreadable):
    if not some and skip_unreadable:
        raise UserError(
            f"no {split} picture can be used; add some, or set data.eval_folder or another data.eval_percent: "
            + _first(left_out)
        )
    if left_out and not skip_unreadable and (split == "eval" or not some):
        raise UserError(
            f"{len(left_out)} of {total} pictures cannot be used; set data.skip_unreadable=True to leave them "
            "out: " + _first(left_out)
        )


@contextlib.contextmanager
def _progress_bar(total):
    """`advance()`: a bar of files on stderr, with their rate and the time left."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("preparing pictures", total=total, rate="")

        def advance():
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")

        yield advance


def in_order(pool, function, items, ahead, alone):
    """function(item) for each item, in order, at most `ahead` of them computed or waiting at a time.

    Those for which `alone(item)` is true are computed only when their turn has come.
    """
    running = collections.deque()
    for item in items:
        running.append(functools.partial(function, item) if alone(item) else pool.submit(function, item).result)
        if len(running) >= ahead:
            yield running.popleft()()
    while running:
        yield running.popleft()()


def _first(lines, shown=10):
    more = [f"... and {len(lines) - shown} more"] if len(lines) > shown else []
    return "".join(f"\n  {line}" for line in [*lines[:shown], *more])


def _warn(message):
    print(f"warning: {message}", file=sys.stderr)


def folder_source(folder, *, split: str, **options) -> Source:
    """The split "train" or "eval" of a folder of pictures; options are those of `prepare_folder`, which prepares it."""
    path = prepare_folder(folder, **options)
    return builder_source(tfds.builder_from_directory(path), split, "image", name_key="name")

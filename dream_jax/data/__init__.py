"""Pictures by index and batches by step number.

A source is anything with len(source) and source[i] -> uint8 [H, W, 3]: photographs bundled with scikit-image, a catalog
dataset of TensorFlow Datasets by name, or a folder of pictures prepared once into an ArrayRecord dataset. TensorFlow is
never imported, except by the builders of the catalog while they prepare.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import io
import itertools
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dream_jax.errors import UserError, shown
from dream_jax.files import pictures as images

# Pixels beyond which pictures are prepared one after the other.
_LARGE = 2**24

# Photographs inside the scikit-image package. The two motorcycles are a stereo pair, so they must stay on one side.
BUNDLED = {
    "train": (
        *("astronaut.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg", "hubble_deep_field.jpg"),
        *("brick.png", "camera.png", "coins.png", "grass.png", "gravel.png", "moon.png"),
    ),
    "eval": ("chelsea.png", "coffee.png"),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Pictures by index: len(source), source[i] -> uint8 [H, W, 3].

    Attributes:
      read: `i -> picture`, for i in 0..pictures-1.
      pictures: how many there are.
      copies: how often each is listed.
      name: `i -> what the picture is called`, where that is known.
    """

    read: Callable[[int], np.ndarray]
    pictures: int
    copies: int = 1
    name: Callable[[int], str] | None = None

    def __len__(self):
        return self.pictures * self.copies

    def __getitem__(self, index):
        return self.read(range(len(self))[index] % self.pictures)

    def label(self, index: int) -> str:
        """A name for a person: the file's, else the number."""
        number = int(index) % self.pictures
        return f"picture {number}" if self.name is None else self.name(number)


def fingerprint(source) -> str:
    """What a checkpoint records about its data: the number of pictures, and a CRC-32 of eight of them, evenly spaced.

    It depends on the pixels alone, so the same data in another place, or prepared by another machine, is the same.
    """
    crc = 0
    for index in sorted(set(np.linspace(0, len(source) - 1, 8).astype(int).tolist())):
        picture = np.ascontiguousarray(source[index])
        crc = zlib.crc32(picture, zlib.crc32(repr(picture.shape).encode(), crc))
    return f"{len(source)} pictures, crc32 {crc:08x}"


def bundled(split: str) -> Source:
    """Photographs that come with scikit-image: eleven to train on, 20 times each, and two others to evaluate on."""
    if split not in BUNDLED:
        raise UserError(f"the bundled photographs have the splits {', '.join(BUNDLED)}, not {split!r}")
    package = importlib.util.find_spec("skimage")
    if package is None:
        raise UserError("the bundled photographs are part of scikit-image: pip install scikit-image")
    folder = Path(package.submodule_search_locations[0]) / "data"
    pictures = [images.read(folder / name) for name in BUNDLED[split]]
    # A draw from a shuffled list of five takes grain 6 ms, and correspondingly less from a longer one.
    copies = 20 if split == "train" else 1
    return Source(pictures.__getitem__, len(pictures), copies, BUNDLED[split].__getitem__)


def tfds_source(name: str, split: str, data_dir: str | None = None, image_key: str | None = None) -> Source:
    """A prepared dataset of the TensorFlow Datasets catalog, as "cifar10" or "div2k/bicubic_x4:2.0.0".

    split is in the notation of TensorFlow Datasets ("train", "test[:100]"), data_dir defaults to its own
    (~/tensorflow_datasets, or TFDS_DATA_DIR); image_key defaults to "hr", else "image", else the only picture there is.
    Raises UserError if there is no such dataset, split or picture, or if it is not prepared for random access.
    """
    builder = _catalog_builder(name, data_dir)
    if not builder.is_prepared():
        raise UserError(f"{name} is not prepared in {builder.data_dir}. {_how_to_prepare(name, data_dir)}")
    _need_random_access(builder, name, data_dir)
    return _builder_source(builder, split, image_key)


def prepare_tfds(name: str, data_dir: str | None = None) -> Path:
    """Downloads a catalog dataset and writes it as ArrayRecord; returns its folder. Needs TensorFlow, only here."""
    builder = _catalog_builder(name, data_dir)
    if not builder.is_prepared():
        if importlib.util.find_spec("tensorflow") is None:
            raise UserError(
                f"the catalog's own code unpacks {name} with TensorFlow: pip install tensorflow (only for preparing; "
                "training and evaluation do not import it)"
            )
        try:
            builder.download_and_prepare(file_format="array_record")
        except (OSError, AssertionError, tfds.download.DownloadError) as error:  # no network, or files to fetch by hand
            raise UserError(f"{name} could not be prepared in {builder.data_dir}: {error}") from error
    _need_random_access(builder, name, data_dir)
    return Path(builder.data_dir)


def _catalog_builder(name, data_dir):
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise UserError(f"data.tfds: TensorFlow Datasets has no {name!r}: {error}") from error


def _how_to_prepare(name, data_dir):
    where = f" --tfds_dir {data_dir}" if data_dir else ""
    return (
        f"Prepare it with: python -m dream_jax prepare --tfds {name}{where} (the catalog's own code needs TensorFlow "
        "for that, and nothing else does: pip install tensorflow)"
    )


def _need_random_access(builder, name, data_dir):
    found = sorted(file_format.value for file_format in builder.info.available_file_formats())
    if not {"array_record", "parquet"} & set(found):
        raise UserError(
            f"{name} in {builder.data_dir} is in the format {', '.join(found)}, which has no random access. Delete "
            f"that folder or choose another data.tfds_dir. {_how_to_prepare(name, data_dir)}"
        )


def _builder_source(builder, split, image_key):
    features = builder.info.features
    pictures = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if image_key is None:
        image_key = next((key for key in ("hr", "image") if key in pictures), None)
        if image_key is None and len(pictures) == 1:
            image_key = pictures[0]
    if image_key not in pictures:
        raise UserError(
            f"data.image_key: {builder.name} has the pictures {', '.join(pictures) or '(none)'}; "
            + (f"{image_key!r} is not one of them" if image_key else "name one of them")
        )
    if features[image_key].np_dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"data.image_key: {builder.name}/{image_key} holds {features[image_key].np_dtype}, not a picture"
        )
    # Decoded here: what TensorFlow Datasets decodes with depends on whether OpenCV is installed.
    encoded = {key: tfds.decode.SkipDecoding() for key in pictures}
    try:
        records = builder.as_data_source(split=split, decoders=encoded)
    except ValueError as error:
        known = ", ".join(builder.info.splits)
        raise UserError(
            f"data.train_split, data.eval_split: {builder.name} has the splits {known}; {split!r} is refused: {error}"
        ) from error
    # A folder's own records know their files.
    name = (lambda index: records[index]["name"].decode()) if builder.name == Pictures.name else None
    return Source(lambda index: images.read(records[index][image_key]), len(records), name=name)


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


def folder_source(
    folder,
    *,
    split: str,
    crop: int,
    eval_folder=None,
    cache_dir=None,
    resize: int | None = None,
    skip_unreadable: bool = False,
    eval_percent: float = 10.0,
) -> Source:
    """The split "train" or "eval" of a folder of pictures, prepared by prepare_folder if it is not yet."""
    path = prepare_folder(
        folder,
        crop=crop,
        eval_folder=eval_folder,
        cache_dir=cache_dir,
        resize=resize,
        skip_unreadable=skip_unreadable,
        eval_percent=eval_percent,
    )
    return _builder_source(tfds.builder_from_directory(path), split, "image")


def prepare_folder(
    folder,
    *,
    crop: int,
    eval_folder=None,
    cache_dir=None,
    resize: int | None = None,
    skip_unreadable: bool = False,
    eval_percent: float = 10.0,
) -> Path:
    """Makes a folder of pictures into an ArrayRecord dataset with the splits "train" and "eval"; returns its path.

    It is made once, under cache_dir (default: DREAM_JAX_CACHE, else XDG_CACHE_HOME/dream_jax, else ~/.cache/dream_jax),
    in a folder named after the files' names, sizes and times and these arguments, so a folder that changed is prepared
    anew. It appears there only when complete, and the first of several processes that prepare the same one wins.

    eval is all of eval_folder, whose files are then never in train, or about eval_percent of the folder: by a CRC-32 of
    each file's name, so adding files moves none. With resize, the shorter side becomes that many pixels. Evaluation
    pictures are kept whole; training pictures longer than 4 * crop are cut by `tiles`, since decoding a large PNG for
    every crop is slow.

    Raises UserError if no picture is left, the cache cannot be written, or, unless skip_unreadable, a picture cannot be
    read or is smaller than the crop: all of them are named.
    """
    folder = Path(folder)
    splits = _split_files(folder, eval_folder, eval_percent)
    settings = (crop, resize, skip_unreadable, str(Pictures.VERSION))
    digest = hashlib.sha256(repr(settings).encode())
    for split, files in splits.items():
        for name, path in files.items():
            digest.update(repr((split, name, *_size_and_time(path))).encode())
    cache = _cache_dir(cache_dir)
    prepared = cache / f"{shown(folder.resolve().name)}-{digest.hexdigest()[:16]}"
    if not prepared.exists():
        unfinished = None
        try:
            cache.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=cache))
            _warn_of_duplicates(splits)
            made = _write(splits, unfinished, crop, resize, skip_unreadable)
            try:
                os.rename(made, prepared)
            except OSError:  # another process was first, with the same files
                if not prepared.exists():
                    raise
        except OSError as error:
            raise UserError(
                f"data.cache_dir: prepared pictures cannot be written to {cache} ({error}); choose another folder "
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


def _cache_dir(cache_dir):
    if cache_dir or os.environ.get("DREAM_JAX_CACHE"):
        return Path(cache_dir or os.environ["DREAM_JAX_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dream_jax"


def _size_and_time(path):
    """Of a picture file; None and None of what cannot be one: links to nowhere or in a circle, pipes, folders."""
    with contextlib.suppress(OSError):
        about = path.stat()
        if stat.S_ISREG(about.st_mode):
            return about.st_size, about.st_mtime_ns
    return None, None


def _split_files(folder, eval_folder, eval_percent):
    """{"train": {name: path}, "eval": {name: path}}: names relative to their folder, in order."""
    files = {Path(path).relative_to(folder).as_posix(): Path(path) for path in images.list_pictures(folder)}
    if eval_folder is not None:
        held_out = {Path(p).relative_to(eval_folder).as_posix(): Path(p) for p in images.list_pictures(eval_folder)}
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
    common = {size for size, _ in train if 0 < size <= images.MOST_BYTES} & {size for size, _ in held_out}
    trained_on = {digest(path): path for size, path in train if size in common}
    found = [(path, trained_on.get(digest(path))) for size, path in held_out if size in common]
    same = [f"{shown(path)} = {shown(other)}" for path, other in found if other is not None]
    if same:
        _warn(f"{len(same)} evaluation pictures are also trained on, byte for byte: {_first(same)}")


def _write(splits, unfinished, crop, resize, skip_unreadable):
    left_out = []

    def tile(split, name, path):
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
        whole = split == "eval"
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

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )

    def alone(item):
        # A large one takes up to a GiB.
        return images.claimed_pixels(item[1]) > _LARGE

    total = sum(len(files) for files in splits.values())
    # A few threads: decoding and encoding release the interpreter's lock, and each holds a whole picture.
    threads = min(os.cpu_count() or 1, 8)
    with (
        Progress(*columns, console=Console(stderr=True)) as progress,
        ThreadPoolExecutor(threads) as pool,
    ):
        task = progress.add_task("preparing pictures", total=total, rate="")

        def examples(split):
            some = False
            items = splits[split].items()
            for found, problem in _in_order(pool, lambda item: tile(split, *item), items, 2 * threads, alone):
                some |= bool(found)
                if problem:
                    left_out.append(problem)
                yield from found
                speed = progress.tasks[0].speed
                progress.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")
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


def _in_order(pool, function, items, ahead, alone):
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


class Crop(grain.transforms.RandomMap):
    """A square of `crop` pixels, its place uniform."""

    def __init__(self, crop):
        self.crop = crop

    def random_map(self, picture, rng):
        top, left = (int(rng.integers(side - self.crop + 1)) for side in picture.shape[:2])
        return picture[top : top + self.crop, left : left + self.crop]


def train_pictures(source, seed: int, crop: int, resize: int | None = None) -> grain.MapDataset:
    """An endless sequence of uint8 [crop, crop, 3], a function of (seed, index): shuffled anew each epoch, cropped.

    With resize, the shorter side is first made that many pixels. A picture that is smaller than the crop is a UserError
    when it is reached.
    """
    large_enough = Source(lambda index: _fit(source, index, crop, resize), len(source))
    # Seeds are derived in order, so another order would be other pictures.
    return grain.MapDataset.source(large_enough).seed(seed).shuffle().repeat().random_map(Crop(crop))


def batch_indices(source, seed: int, batch_size: int, k: int) -> list[int]:
    """The places in the source of the pictures of global batch k of `train_pictures`, in the order of its rows."""
    shuffled = grain.MapDataset.source(range(len(source))).seed(seed).shuffle().repeat()
    return [int(shuffled[k * batch_size + row]) for row in range(batch_size)]


def eval_pictures(source, crop: int | None = None, count: int | None = None, multiple: int = 1, resize=None):
    """The middle crop x crop of the first `count` pictures (default: of all), in order: uint8 [N, crop, crop, 3].

    Without a crop: the largest height and width that all these pictures have, rounded down to a multiple of `multiple`.
    """
    chosen = range(len(source) if count is None else min(count, len(source)))
    if crop is not None:
        return np.stack([_middle(_fit(source, index, crop, resize), crop, crop) for index in chosen])
    pictures = [_fit(source, index, multiple, resize) for index in chosen]
    height, width = (min(sides) // multiple * multiple for sides in zip(*(p.shape[:2] for p in pictures), strict=True))
    return np.stack([_middle(picture, height, width) for picture in pictures])


def _fit(source, index, crop, resize):
    picture = source[index]
    if resize is not None and min(picture.shape[:2]) != resize:
        try:
            picture = images.resize_shorter_side(picture, resize)
        except UserError as error:
            raise UserError(f"picture {index} of the data: {error}; leave it out, or lower data.resize") from error
    height, width = picture.shape[:2]
    if min(height, width) < crop:
        raise UserError(
            f"picture {index} of the data is {width}x{height}, smaller than the crop of {crop}; lower image_size (or "
            "evaluation.crop), set data.resize, or leave the picture out"
        )
    return picture


def _middle(picture, height, width):
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def batch_rows(pictures, k: int, batch_size: int, rows, pool) -> np.ndarray:
    """Rows of global batch k, uint8 [len(rows), crop, crop, 3]: row r is pictures[k * batch_size + r]."""
    return np.stack(list(pool.map(lambda row: pictures[k * batch_size + int(row)], rows)))


class Batches:
    """Global batches by step number: batches(k) -> {"image": uint8 [G, H, W, C], "row": int32 [G]}, sharded alike.

    Any k may be asked for at any time. This process reads only the rows that its own devices hold, in `workers`
    threads, and the `ahead` batches after k are prepared meanwhile. Close it, or use it in a with statement, to end
    the threads.
    """

    def __init__(self, pictures, batch_size: int, sharding, workers: int = 2, ahead: int = 2):
        self._pictures, self._batch_size, self._sharding, self._ahead = pictures, batch_size, sharding, ahead
        local = sharding.addressable_devices_indices_map((batch_size,)).values()
        self._rows = np.unique(np.concatenate([np.arange(batch_size)[index] for index in local]))
        self._readers = ThreadPoolExecutor(workers, "dream_jax_read")
        self._preparer = ThreadPoolExecutor(1, "dream_jax_batch")
        self._coming = {}

    def __call__(self, k: int) -> dict[str, jax.Array]:
        wanted = range(k, k + self._ahead + 1)
        for stale in self._coming.keys() - set(wanted):
            self._coming.pop(stale).cancel()
        for j in wanted:
            if j not in self._coming:
                self._coming[j] = self._preparer.submit(self._prepare, j)
        return self._coming.pop(k).result()

    def _prepare(self, k):
        local = batch_rows(self._pictures, k, self._batch_size, self._rows, self._readers)
        row = np.arange(self._batch_size, dtype=np.int32)

        def local_part(index):
            return local[np.searchsorted(self._rows, row[index[0]])]

        shape = (self._batch_size, *local.shape[1:])
        return {
            "image": jax.make_array_from_callback(shape, self._sharding, local_part),
            "row": jax.make_array_from_callback(row.shape, self._sharding, lambda index: row[index]),
        }

    def close(self):
        self._preparer.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

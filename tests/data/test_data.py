import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny
from PIL import Image

from dream_jax.data import batches, bundled, catalog, folders, held_out, indexed, sources
from dream_jax.errors import UserError
from launch import local

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"


def noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def numbered(count, size=12):
    """Pictures that tell where a crop was taken: red is the picture, green the row, blue the column."""
    grid = np.stack(np.broadcast_arrays(0, np.arange(size)[:, None], np.arange(size)), axis=-1).astype(np.uint8)
    return [grid + np.array([i, 0, 0], np.uint8) for i in range(count)]


def save(folder, name, picture, **options):
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for i in range(8):
        save(tmp_path / "pictures", f"{i}.png", noise(i, 20 + i, 24))
    return tmp_path / "pictures"


@pytest.fixture
def prepare(tmp_path):
    def run(folder, crop=8, **options):
        return folders.prepare_folder(folder, crop=crop, cache_dir=tmp_path / "cache", **options)

    return run


def records(path, split):
    return list(tfds.builder_from_directory(path).as_data_source(split=split))


def names(path, split):
    return [record["name"].decode() for record in records(path, split)]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as pool:
        yield pool


# Sources


def test_bundled_photographs_are_listed_evenly_and_evaluation_shares_none():
    train, held_out = bundled.photographs("train"), bundled.photographs("eval")
    assert len(list(held_out)) == len(held_out) == 2 and len(list(train)) == len(train) == 220
    assert {train[i].tobytes() for i in range(11)} == {train[i].tobytes() for i in range(209, 220)}
    for source, count in ((train, 11), (held_out, 2)):
        for i in range(count):
            assert source[i].dtype == np.uint8 and source[i].shape[2] == 3 and min(source[i].shape[:2]) >= 256
    assert not {held_out[i].tobytes() for i in range(2)} & {train[i].tobytes() for i in range(11)}
    with pytest.raises(UserError, match="train, eval"):
        bundled.photographs("test")


def test_fingerprint_is_of_the_pixels():
    pictures = numbered(20)
    assert indexed.fingerprint(pictures) == indexed.fingerprint([p.copy() for p in pictures])
    others = [pictures[:-1], pictures[1:], [*pictures[:-1], noise(0, 12, 12)], [pictures[0].reshape(6, 24, 3)] * 20]
    assert len({indexed.fingerprint(p) for p in [pictures, *others]}) == 5
    assert indexed.fingerprint(pictures[:1]).startswith("1 pictures")


def test_folder_is_prepared_once_and_anew_when_it_changes(folder, prepare):
    path = prepare(folder)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert prepare(folder) == path and {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    # Crops of 5 pixels are of cut pictures; those that share are below.
    paths = [path, prepare(folder, crop=5), prepare(folder, resize=16), prepare(folder, eval_percent=50)]
    os.utime(folder / "0.png", ns=(1, 1))
    paths.append(prepare(folder))
    save(folder, "more.png", noise(99, 20, 20))
    paths.append(prepare(folder))
    assert len(set(paths)) == 6
    assert all(p.name.startswith("pictures-") for p in paths)
    assert not list(path.parent.glob(".*"))


def test_what_is_computed_alone_waits_for_its_turn():
    begun, taken = [], []
    with ThreadPoolExecutor(2) as pool:
        for result in folders.in_order(pool, lambda n: begun.append(n) or n, range(12), 6, lambda n: n % 3 == 0):
            assert max((n for n in begun if n % 3 == 0), default=0) <= result
            taken.append(result)
    assert taken == list(range(12))


def test_pictures_of_a_folder_come_back_as_they_were_and_in_order(folder, prepare):
    path = prepare(folder, eval_percent=40)
    for split in ("train", "eval"):
        source = folders.folder_source(folder, split=split, crop=8, cache_dir=path.parent, eval_percent=40)
        assert len(source) == len(names(path, split)) and names(path, split) == sorted(names(path, split))
        for i, name in enumerate(names(path, split)):
            np.testing.assert_array_equal(source[i], np.asarray(Image.open(folder / name)))
    assert sorted(names(path, "train") + names(path, "eval")) == sorted(p.name for p in folder.iterdir())


def test_adding_pictures_moves_none_between_the_splits(folder, prepare):
    few = {split: set(names(prepare(folder, eval_percent=30), split)) for split in ("train", "eval")}
    for i in range(30):
        save(folder / "sub", f"more{i}.png", noise(100 + i, 20, 20))
    many = {split: set(names(prepare(folder, eval_percent=30), split)) for split in ("train", "eval")}
    assert few["train"] < many["train"] and few["eval"] <= many["eval"]
    assert 4 <= len(many["eval"]) <= 19


@pytest.mark.parametrize(("percent", "held_out"), [(0, 1), (100, 7)])
def test_neither_split_is_ever_empty(folder, prepare, percent, held_out):
    path = prepare(folder, eval_percent=percent)
    assert len(names(path, "eval")) == held_out and len(names(path, "train")) == 8 - held_out


def test_eval_folder_is_never_trained_on(folder, prepare, tmp_path):
    save(folder / "held_out", "a.png", noise(50, 100, 30))
    path = prepare(folder, eval_folder=folder / "held_out")
    assert len(names(path, "train")) == 8 and "held_out/a.png" not in names(path, "train")
    assert names(path, "eval") == ["a.png"] and records(path, "eval")[0]["image"].shape == (100, 30, 3)
    with pytest.raises(UserError, match="every picture"):
        prepare(folder, eval_folder=folder)


def test_evaluation_pictures_with_the_bytes_of_training_ones_are_named(folder, prepare, tmp_path, capsys):
    save(tmp_path / "held_out", "fresh.png", noise(50, 30, 30))
    (tmp_path / "held_out" / "again.png").write_bytes((folder / "3.png").read_bytes())
    prepare(folder, eval_folder=tmp_path / "held_out")
    error = capsys.readouterr().err
    assert "1 evaluation pictures" in error and "again.png" in error and "3.png" in error and "fresh" not in error


def test_every_mode_of_picture_becomes_rgb(folder, prepare, tmp_path):
    modes = tmp_path / "modes"
    rgb, grey = noise(0, 20, 24), noise(1, 20, 24)[..., 0]
    save(modes, "rgb.png", rgb)
    save(modes, "grey.png", grey)
    save(modes, "deep.png", grey.astype(np.uint16) * 257)
    save(modes, "alpha.png", np.dstack([rgb, np.full((20, 24), 255, np.uint8)]))
    Image.fromarray(rgb).quantize(16).save(modes / "palette.png")
    Image.fromarray(rgb).convert("CMYK").save(modes / "cmyk.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    save(modes, "turned.png", rgb, exif=exif)
    path = prepare(folder, eval_folder=modes)
    found = {record["name"].decode(): record["image"] for record in records(path, "eval")}
    assert len(found) == 7
    for name in ("grey.png", "deep.png"):
        np.testing.assert_array_equal(found[name], np.repeat(grey[..., None], 3, axis=-1))
    for name in ("rgb.png", "alpha.png", "cmyk.tif"):
        np.testing.assert_array_equal(found[name], rgb)
    np.testing.assert_array_equal(found["palette.png"], Image.open(modes / "palette.png").convert("RGB"))
    np.testing.assert_array_equal(found["turned.png"], np.rot90(rgb, -1))


@pytest.mark.parametrize("crop", [1, 2, 5, 16])
def test_each_crop_of_a_side_is_in_exactly_one_tile(crop):
    for size in range(crop, 20 * crop + 20):
        tiles = folders.tiles(size, crop)
        inside = [start for a, b in tiles for start in range(a, b - crop + 1)]
        assert inside == list(range(size - crop + 1))
        assert max(b - a for a, b in tiles) <= 4 * crop
        assert (len(tiles) == 1) == (size <= 4 * crop)
        assert all(previous[1] - tile[0] == crop - 1 for previous, tile in itertools.pairwise(tiles))


def test_tiles_are_parts_of_the_picture_where_they_say(folder, prepare, tmp_path):
    large = noise(7, 70, 41)
    save(tmp_path / "large", "sub/large.png", large)
    tiles = records(prepare(tmp_path / "large", eval_folder=folder), "train")
    covered = np.zeros(large.shape[:2], int)
    for tile in tiles:
        assert tile["name"] == b"sub/large.png" and max(tile["image"].shape[:2]) <= 32
        height, width, _ = tile["image"].shape
        place = np.s_[tile["top"] : tile["top"] + height, tile["left"] : tile["left"] + width]
        np.testing.assert_array_equal(tile["image"], large[place])
        covered[place] += 1
    assert covered.min() == 1 and len(tiles) == 3 * 2


def test_resize_makes_the_shorter_side(folder, prepare):
    path = prepare(folder, resize=12)
    shapes = [record["image"].shape[:2] for split in ("train", "eval") for record in records(path, split)]
    assert {min(shape) for shape in shapes} == {12} and max(max(shape) for shape in shapes) > 12


def test_unusable_pictures_are_all_named_and_left_out_only_on_request(folder, prepare, capsys):
    for i in range(9):
        Path(folder, f"text{i}.png").write_text("not a picture")
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    save(folder, "tiny.png", noise(0, 7, 30))
    with pytest.raises(UserError, match=r"11 of 18 .*skip_unreadable=True") as error:
        prepare(folder, eval_percent=40)
    assert str(error.value).count(".png") >= 10 and "and 1 more" in str(error.value)
    cache = folder.parent / "cache"
    assert not list(cache.iterdir())
    capsys.readouterr()
    path = prepare(folder, eval_percent=40, skip_unreadable=True)
    assert set(names(path, "train") + names(path, "eval")) == {f"{i}.png" for i in (0, 2, 3, 4, 5, 6, 7)}
    error = capsys.readouterr().err
    assert "warning: 11 of 18 pictures are left out" in error and "text0.png" in error
    # A picture that is too small is told from one that cannot be read.
    for file in folder.glob("text*"):
        file.unlink()
    with pytest.raises(UserError, match=r"30x7 is smaller than the crop of 8 \(image_size\)"):
        prepare(folder, eval_percent=40)


def test_a_folder_without_a_usable_picture_is_refused(tmp_path, prepare, folder):
    empty = tmp_path / "empty"
    for skip in (False, True):
        with pytest.raises(UserError, match="empty"):
            prepare(empty, skip_unreadable=skip)
        empty.mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Path(empty, name).write_text("not a picture")
    for options in ({}, {"eval_folder": folder}):
        with pytest.raises(UserError, match=r"no (train|eval) picture can be used(?s:.)*\.png"):
            prepare(empty, skip_unreadable=True, **options)
    (empty / "b.png").unlink()
    with pytest.raises(UserError, match="one picture"):
        prepare(empty)


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache_dir.*file"):
        folders.prepare_folder(folder, crop=8, cache_dir=tmp_path / "file")
    monkeypatch.setenv("DREAM_JAX_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="DREAM_JAX_CACHE"):
        folders.prepare_folder(folder, crop=8)
    monkeypatch.delenv("DREAM_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folders.prepare_folder(folder, crop=8).parent == tmp_path / "xdg" / "dream_jax"


def test_an_interrupted_preparation_leaves_nothing_that_looks_whole(folder, prepare, monkeypatch):
    read, calls = folders.images.read_noting, []

    def interrupted(path, reading):
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(path, reading)

    monkeypatch.setattr(folders.images, "read_noting", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder)
    assert not list((folder.parent / "cache").iterdir())
    monkeypatch.undo()
    path = prepare(folder)
    assert len(names(path, "train") + names(path, "eval")) == 8


def test_of_two_that_prepare_at_once_both_get_the_same_whole_dataset(folder, prepare, monkeypatch):
    write, winner = folders._write, []

    def overtaken(*arguments):
        monkeypatch.setattr(folders, "_write", write)
        made = write(*arguments)
        winner.append(prepare(folder))
        return made

    monkeypatch.setattr(folders, "_write", overtaken)
    path = prepare(folder)
    assert winner == [path] and len(names(path, "train") + names(path, "eval")) == 8
    assert list(path.parent.iterdir()) == [path]


# The catalog, without its downloads


def example(feature, picture):
    """An example of a catalog feature: pictures from `picture`, the rest zeros and empty."""
    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: example(value, picture) for key, value in feature.items()}
    if isinstance(feature, tfds.features.Image):
        height, width, channels = feature.shape
        pixels = picture[: height or 40, : width or 50]
        return Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    if isinstance(feature, tfds.features.Text):
        return ""
    return feature.np_dtype(0)


def fake(monkeypatch, name, data_dir, pictures):
    """Writes a catalog dataset of these pictures with its own builder's name, version and features."""
    builder = tfds.builder(name, data_dir=data_dir)
    features = builder.info.features
    given = {split: [(i, example(features, p)) for i, p in enumerate(pictures)] for split in ("train", "test")}
    with monkeypatch.context() as patch:
        patch.setattr(type(builder), "_split_generators", lambda self, dl: {s: iter(e) for s, e in given.items()})
        builder.download_and_prepare(file_format="array_record")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cifar10", (32, 32)), ("celeb_a", (218, 178)), ("div2k/bicubic_x4", (40, 50)), ("mnist", (28, 28))],
)
def test_catalog_datasets_are_read_by_name_in_their_own_features(monkeypatch, tmp_path, name, shape):
    smooth = np.add.outer(np.arange(218), np.arange(178))[..., None] // np.array([2, 3, 4])
    pictures = [(smooth + 20 * i).astype(np.uint8) for i in range(3)]
    fake(monkeypatch, name, tmp_path, pictures)
    source = catalog.tfds_source(name, "train", data_dir=tmp_path)
    found = sorted((source[i] for i in range(len(source))), key=lambda picture: picture[0, 0, 0])
    for picture, written in zip(found, pictures, strict=True):
        assert picture.dtype == np.uint8 and picture.shape == (*shape, 3)
        written = written[: shape[0], : shape[1], : 1 if name == "mnist" else 3]
        np.testing.assert_allclose(picture.astype(int), written + np.zeros(3, int), atol=6 if name == "celeb_a" else 0)
    assert len(catalog.tfds_source(name, "train[:2]", data_dir=tmp_path)) == 2
    assert catalog.prepare_tfds(name, tmp_path) == Path(tfds.builder(name, data_dir=tmp_path).data_dir)


def test_what_the_catalog_does_not_have_is_said(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="cifra10"):
        catalog.tfds_source("cifra10", "train", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"python -m dream_jax prepare --tfds cifar10 .*pip install tensorflow"):
        catalog.tfds_source("cifar10", "train", data_dir=tmp_path)
    fake(monkeypatch, "cifar10", tmp_path, [noise(0, 32, 32)])
    with pytest.raises(UserError, match=r"data.train_split.*train.*valid"):
        catalog.tfds_source("cifar10", "valid", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"data.image_key.*'label'"):
        catalog.tfds_source("cifar10", "train", data_dir=tmp_path, image_key="label")
    # The same records, said to be in the catalog's default format.
    info = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=r"tfrecord, which has no random access.*prepare --tfds cifar10"):
        catalog.tfds_source("cifar10", "train", data_dir=tmp_path)


def test_preparing_the_catalog_without_tensorflow_or_network_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorflow"):
        catalog.prepare_tfds("cifar10", tmp_path)
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda name: name)

    def offline(*_, **options):
        assert options == {"file_format": "array_record"}
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(UserError, match=r"cifar10 could not be prepared.*no route"):
        catalog.prepare_tfds("cifar10", tmp_path)


def test_tensorflow_is_never_imported(folder, tmp_path):
    program = f"""
import sys
from dream_jax.data import batches, bundled, folders, held_out
source = folders.folder_source({str(folder)!r}, split="train", crop=8, cache_dir={str(tmp_path / "cache")!r})
batches.train_pictures(source, 0, 8)[3], held_out.middle_crops(source, 8, 9), bundled.photographs("eval")[0]
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


# Batches


def test_the_order_of_pictures_and_the_crops_are_pinned():
    """A release of grain or numpy that draws differently changes every run: it must not pass unseen."""
    pictures = batches.train_pictures(numbered(10), seed=0, crop=4)
    assert [int(pictures[i][0, 0, 0]) for i in range(20)] == [
        *(1, 2, 4, 5, 9, 7, 8, 6, 0, 3),
        *(9, 6, 1, 8, 2, 0, 3, 5, 4, 7),
    ]
    assert [pictures[i][0, 0].tolist() for i in (0, 1, 123456789)] == [[1, 0, 3], [2, 4, 0], [7, 7, 3]]


def test_each_epoch_is_a_permutation_with_crops_of_its_own():
    source = numbered(10)
    pictures = batches.train_pictures(source, seed=3, crop=4)
    epochs = [[pictures[epoch * 10 + i] for i in range(10)] for epoch in (0, 1, 12345)]
    for epoch in epochs:
        assert sorted(int(crop[0, 0, 0]) for crop in epoch) == list(range(10))
        for crop in epoch:
            i, top, left = (int(v) for v in crop[0, 0])
            np.testing.assert_array_equal(crop, source[i][top : top + 4, left : left + 4])
    places = [tuple(tuple(crop[0, 0]) for crop in sorted(epoch, key=lambda c: c[0, 0, 0])) for epoch in epochs]
    assert len(set(places)) == 3


def test_crops_are_taken_everywhere_and_equally_often():
    pictures = batches.train_pictures(numbered(1, size=6), seed=0, crop=4)
    places, counts = np.unique([pictures[i][0, 0, 1:] for i in range(900)], axis=0, return_counts=True)
    assert len(places) == 9 and np.sum((counts - 100) ** 2 / 100) < 26.1  # chi-squared, 8 degrees, 0.1%


def test_seeds_differ():
    crops = {batches.train_pictures(numbered(10), seed, 4)[0].tobytes() for seed in range(8)}
    assert len(crops) > 4


def test_train_pictures_are_resized_before_the_crop():
    source = [noise(i, 30, 40) for i in range(3)]
    np.testing.assert_array_equal(
        sorted(batches.train_pictures(source, 0, 12, resize=12)[i].shape for i in range(3)), [(12, 12, 3)] * 3
    )
    with pytest.raises(UserError, match=r"picture \d of the data is 16x12, smaller than the crop of 13"):
        batches.train_pictures(source, 0, 13, resize=12)[0]


def test_rows_of_a_batch_are_the_same_in_any_company(pool):
    pictures = batches.train_pictures(numbered(10), seed=0, crop=4)
    whole = batches.batch_rows(pictures, 7, 6, range(6), pool)
    assert whole.shape == (6, 4, 4, 3) and whole.dtype == np.uint8
    np.testing.assert_array_equal(batches.batch_rows(pictures, 7, 6, [4, 1], pool), whole[[4, 1]])
    with ThreadPoolExecutor(1) as single:
        np.testing.assert_array_equal(batches.batch_rows(pictures, 7, 6, np.arange(6), single), whole)
    np.testing.assert_array_equal(whole, [pictures[42 + i] for i in range(6)])


def one_device():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def test_batches_in_any_order_are_the_batches_in_order():
    def pictures():
        return batches.train_pictures(numbered(10), seed=0, crop=4)

    with batches.Batches(pictures(), 4, one_device()) as feed:
        straight = {k: feed(k) for k in range(8)}
    for batch in straight.values():
        assert batch["image"].dtype == np.uint8 and batch["row"].dtype == np.int32
        np.testing.assert_array_equal(batch["row"], np.arange(4))
    for workers, ahead, order in [(1, 0, [5, 2, 7, 2]), (3, 5, [4, 5, 6, 7, 0]), (2, 2, [6, 7, 3, 1])]:
        with batches.Batches(pictures(), 4, one_device(), workers, ahead) as resumed:
            for k in order:
                np.testing.assert_array_equal(resumed(k)["image"], straight[k]["image"])


def test_a_process_reads_only_the_rows_of_its_devices_and_some_batches_ahead(monkeypatch):
    asked, index = [], (slice(3, 6), slice(None))

    class Counted:
        def __getitem__(self, index):
            asked.append(index)
            return np.full((4, 4, 3), index, np.uint8)

    class SecondOfTwo:
        def addressable_devices_indices_map(self, shape):
            return {"its only device": index[: len(shape)]}

    monkeypatch.setattr(
        batches.jax, "make_array_from_callback", lambda shape, _, callback: callback(index[: len(shape)])
    )
    with batches.Batches(Counted(), 6, SecondOfTwo(), ahead=2) as feed:
        batch = feed(5)
        np.testing.assert_array_equal(batch["row"], [3, 4, 5])
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [33, 34, 35])
        deadline = time.monotonic() + 5
        while len(asked) < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert sorted(asked) == [33, 34, 35, 39, 40, 41, 45, 46, 47]


READS = """
import sys, jax, numpy as np
from configs import base
from dream_jax.data import batches
from dream_jax.runtime import processes
from dream_jax.runtime import sharding
processes.join(base.get_config())
asked = []

class Counted:
    def __getitem__(self, index):
        asked.append(index)
        return np.zeros((4, 4, 3), np.uint8)

layout = jax.sharding.NamedSharding(sharding.make_mesh(), sharding.BATCH)
with batches.Batches(Counted(), 8, layout, ahead=0) as feed:
    for k in range(3):
        jax.block_until_ready(feed(k))
open(f"{sys.argv[1]}/{jax.process_index()}", "w").write(" ".join(map(str, sorted(asked))))
"""


def test_two_processes_read_every_picture_once(tmp_path):
    environments = local.make_environments(2, devices=2)
    assert local.supervise([sys.executable, "-c", READS, str(tmp_path)], lambda: environments) == 0
    read = [{int(index) for index in (tmp_path / str(process)).read_text().split()} for process in range(2)]
    assert read[0] == {8 * k + row for k in range(3) for row in range(4)}
    assert read[1] == {8 * k + row for k in range(3) for row in range(4, 8)}


def test_errors_of_workers_reach_the_caller_unchanged_and_no_thread_stays():
    before = threading.active_count()
    source = numbered(10)
    source[4] = noise(0, 3, 3)
    with batches.Batches(batches.train_pictures(source, 0, 4), 10, one_device()) as feed:
        for _ in range(2):
            with pytest.raises(UserError, match="picture 4 of the data is 3x3"):
                feed(0)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize("cores, threads", [(1, 3), (8, 8), (64, 24)])
def test_each_device_has_its_threads_where_there_are_cores(cores, threads, monkeypatch):
    class Eight:
        def addressable_devices_indices_map(self, shape):
            return {device: (slice(device, device + 1),) for device in range(8)}

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    with batches.Batches(numbered(10), 8, Eight(), workers=3) as feed:
        assert feed._readers._max_workers == threads


def test_one_two_and_four_devices_hold_the_same_batch():
    program = """
import zlib, jax, numpy as np
from dream_jax.data import batches, sources
jax.config.update("jax_num_cpu_devices", 4)
pictures = batches.train_pictures([np.full((9, 9, 3), i, np.uint8) + np.arange(9, dtype=np.uint8)[:, None] * 7
                                for i in range(10)], 0, 4)
found = set()
for shape in [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2)]:
    mesh = jax.make_mesh(shape, ("data", "shard"), axis_types=(jax.sharding.AxisType.Auto,) * 2,
                         devices=jax.devices()[:shape[0] * shape[1]])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "shard")))
    with batches.Batches(pictures, 8, sharding) as feed:
        batch = feed(5)
    parts = len(batch["image"].addressable_shards)
    assert parts == shape[0] * shape[1] and batch["row"].addressable_shards[0].data.shape == (8 // parts,)
    assert np.asarray(batch["row"]).tolist() == list(range(8))
    found.add(zlib.crc32(np.asarray(batch["image"])))
assert len(found) == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_crops_in_the_centre_are_those_that_are_evaluated(folder, prepare, tmp_path):
    source = [noise(i, 30, 41) for i in range(5)]
    pictures = batches.train_pictures(source, 0, 8, resize=12, place="centre")
    evaluated = held_out.middle_crops(source, 8, 5, resize=12)
    assert {picture.tobytes() for picture in evaluated} == {pictures[i].tobytes() for i in range(5)}
    # A large picture is not cut into tiles, each of which has a middle.
    save(tmp_path / "large", "large.png", noise(7, 70, 41))
    (whole,) = records(prepare(tmp_path / "large", eval_folder=folder, whole=True), "train")
    assert whole["image"].shape == (70, 41, 3)


def test_training_may_be_limited_to_the_first_pictures(folder, tmp_path):
    changes = f"data.folder={folder}", f"data.cache_dir={tmp_path}", "image_size=16", "data.limit=3"
    config = tiny.tiny_config(*changes, "data.crop=centre")
    limited, whole = (sources.open_source(c, "train") for c in (config, tiny.tiny_config(*changes[:3])))
    assert len(limited) == 3 < len(whole)
    for index in range(3):
        np.testing.assert_array_equal(limited[index], whole[index])
    assert len(sources.open_source(config, "eval")) == len(sources.open_source(tiny.tiny_config(*changes[:3]), "eval"))


def test_evaluation_takes_the_middle_of_the_first_pictures_in_order():
    source = [*numbered(3), noise(0, 20, 9), noise(1, 10, 30)]
    middle = held_out.middle_crops(source, crop=4, count=2)
    assert middle.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(middle[1], source[1][4:8, 4:8])
    assert len(held_out.middle_crops(source, crop=4, count=9)) == 5
    assert held_out.middle_crops(source, crop=16, count=5, resize=16).shape == (5, 16, 16, 3)
    with pytest.raises(UserError, match="picture 3 of the data is 9x20"):
        held_out.middle_crops(source, crop=10, count=5)


@pytest.mark.skipif(not PHOTOS.exists(), reason="the photographs of ../shared/data/photos are not here")
def test_real_photographs_give_crops_of_themselves(tmp_path):
    path = folders.prepare_folder(PHOTOS / "eval", crop=64, cache_dir=tmp_path, eval_percent=10)
    source = folders.folder_source(PHOTOS / "eval", split="train", crop=64, cache_dir=tmp_path, eval_percent=10)
    assert not set(names(path, "train")) & set(names(path, "eval"))
    assert 3 <= len(names(path, "eval")) <= 20
    assert all(batches.train_pictures(source, 0, 64)[i].shape == (64, 64, 3) for i in range(20))


def test_a_picture_that_is_too_small_is_named(folder, prepare):
    source = folders.folder_source(folder, split="train", crop=8, cache_dir=folder.parent / "cache")
    with pytest.raises(UserError, match=r"^\d\.png is 24x2\d, smaller than the crop of 100"):
        indexed.fit(source, 0, 100)


def test_what_training_leaves_out_of_files_is_said(folder, prepare, capsys):
    first, *more = (Image.fromarray(noise(seed, 24, 24)) for seed in range(3))
    first.save(folder / "film.gif", save_all=True, append_images=more)
    Image.fromarray(noise(0, 24, 24)[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(np.dstack([noise(0, 24, 24), noise(1, 24, 24)[..., :1]])).save(folder / "glass.png")
    prepare(folder)
    said = capsys.readouterr().err
    for what, name in (
        ("have several pages or frames, of which the first is used", "film.gif"),
        ("have more than 8 bits, and are rounded (data.bits=16 keeps them)", "deep.png"),
        ("have transparency, which is not used", "glass.png"),
    ):
        assert f"warning: 1 of 11 pictures {what}: \n  {folder / name}" in said


def test_crops_share_what_is_prepared_where_no_picture_is_cut(folder, prepare, tmp_path):
    """Pictures of 20 to 27 pixels: alike for crops of 7 to 20, and read as if prepared for each."""
    first = prepare(folder, crop=8)
    assert prepare(folder, crop=12) == first == prepare(folder, crop=20)
    # They would be cut, or left out.
    smaller, larger = prepare(folder, crop=6), prepare(folder, crop=21, skip_unreadable=True)
    assert len({first, smaller, larger}) == 3 and prepare(folder, crop=8) == first
    with pytest.raises(UserError, match="smaller than the crop of 21"):
        prepare(folder, crop=21)
    options = {"split": "train", "crop": 12}
    shared = folders.folder_source(folder, cache_dir=tmp_path / "cache", **options)
    own = folders.folder_source(folder, cache_dir=tmp_path / "other", **options)
    assert indexed.fingerprint(shared) == indexed.fingerprint(own)
    (first / "prepared.json").write_text("{")
    assert prepare(folder, crop=12) != first

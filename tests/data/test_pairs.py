"""Low-resolution pictures that are there: found by name, cut at one place with their originals, used everywhere."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny
from photos import noise
from PIL import Image
from stand_ins import QUIET, fake, its_input, nothing, untrained_run

from benchmarks import agreement
from dream_jax import experiment, tasks
from dream_jax.config import records
from dream_jax.data import batches, catalog, folders, held_out, indexed, listing, sources
from dream_jax.data.beside import Beside
from dream_jax.errors import UserError
from dream_jax.evaluation import gap, measuring, whole
from dream_jax.evaluation.inputs import make_inputs
from dream_jax.files import images
from dream_jax.inference import drawing, trained
from dream_jax.sharing import exporting
from dream_jax.training import bad_step_files
from dream_jax.training import workdir as workdirs
from dream_jax.training.train_step import make_losses


def places(height, width, scale):
    """A picture that tells its places, in low-resolution pixels, and the low-resolution one that tells the same."""
    grid = np.stack(np.broadcast_arrays(np.arange(height)[:, None], np.arange(width), 7), axis=-1).astype(np.uint8)
    return grid.repeat(scale, 0).repeat(scale, 1), grid


def pairs_of(count=5, height=20, width=17, scale=3):
    pairs = [places(height, width, scale) for _ in range(count)]
    return indexed.Source(lambda i: pairs[i][0], count, beside=lambda i: pairs[i][1], scale=scale)


def write(folder, pictures):
    for name, picture in pictures.items():
        images.write(Path(folder, name), picture)
    return folder


@pytest.mark.parametrize("place", ["random", "centre"])
def test_a_crop_is_at_one_place_in_both_to_the_pixel(place):
    pictures = batches.train_pictures(pairs_of(), 0, crop=12, place=place)
    starts = set()
    for i in range(60):
        pair = pictures[i]
        assert pair.image.shape == (12, 12, 3) and pair.beside.shape == (4, 4, 3)
        np.testing.assert_array_equal(pair.image, pair.beside.repeat(3, 0).repeat(3, 1))
        starts.add(tuple(pair.beside[0, 0, :2].tolist()))
    assert starts == {(8, 6)} if place == "centre" else len(starts) > 40
    held = held_out.middle_crops(pairs_of(), 12, 3)
    np.testing.assert_array_equal(held.image[1], indexed.middle(pairs_of().pair(1), 12).image)
    assert held.beside.shape == (3, 4, 4, 3)


def test_tiles_of_a_prepared_pair_hold_each_place_once(tmp_path):
    image, low = places(70, 45, 2)
    for folder, pictures in (("train", (image, low)), ("eval", (noise(200, 16, 3), noise(100, 8, 3)))):
        for kind, picture in zip(("high", "low"), pictures, strict=True):
            write(tmp_path / folder / kind, {"a.png": picture})
    options = {
        "crop": 16,
        "cache_dir": tmp_path / "cache",
        "beside": Beside("low", tmp_path / "train/low", tmp_path / "eval/low", scale=2),
    }
    options |= {"eval_folder": tmp_path / "eval/high"}
    source, evaluated = (
        folders.folder_source(tmp_path / "train/high", split=split, **options) for split in ("train", "eval")
    )
    seen = []
    for i in range(len(source)):
        pair = source.pair(i)
        assert max(pair.image.shape) <= 64
        np.testing.assert_array_equal(pair.image, pair.beside.repeat(2, 0).repeat(2, 1))
        top, left = pair.beside[0, 0, :2]
        down, across = indexed.starts(pair, 16)
        seen += [(top + y, left + x) for y in range(down) for x in range(across)]
    assert len(source) > 1 and sorted(seen) == [(y, x) for y in range(70 - 7) for x in range(45 - 7)]
    # What is evaluated stays whole.
    np.testing.assert_array_equal(evaluated.pair(0).image, noise(200, 16, 3))
    np.testing.assert_array_equal(evaluated.pair(0).beside, noise(100, 8, 3))


NAMES = {
    "0801.png": "0801x4.png",
    "sub/0802.png": "sub/0802x4m.jpg",
    "0001_HR.png": "0001_LR4.png",
    "same.jpg": "same.png",
    "b.png": "b_x4.png",
    "c_hr.png": "c_lr.png",
    "Canon_007_HR.png": "Canon_007_LR4.png",
    "img_001_SRF_4_HR.png": "img_001_SRF_4_LR.png",
    "x2.png": "x2.png",
}


def test_partners_are_found_by_name(tmp_path):
    write(tmp_path / "high", dict.fromkeys(NAMES, noise(16, 16, 3)))
    write(tmp_path / "low", dict.fromkeys({*NAMES.values(), "0801x2.png", "other.png"}, noise(4, 4, 3)))
    found = listing.pictures(tmp_path / "high", tmp_path / "low", 4)
    assert {name: entry.beside.relative_to(tmp_path / "low").as_posix() for name, entry in found.items()} == NAMES
    write(tmp_path / "high", {"lonely.png": noise(16, 16, 3), "two.png": noise(16, 16, 3)})
    write(tmp_path / "low", {"two_LR4.png": noise(4, 4, 3), "twox4.png": noise(4, 4, 3)})
    found = listing.pictures(tmp_path / "high", tmp_path / "low", 4)
    assert "no low-resolution picture" in found["lonely.png"].problem and "several" in found["two.png"].problem


def test_pairs_that_do_not_fit_are_all_named_and_left_out_only_on_request(tmp_path, capsys):
    names = [f"{i}.png" for i in range(6)]
    write(tmp_path / "high", {name: noise(16, 16, 3) for name in names} | {"odd.png": noise(19, 17, 3)})
    low = {name: noise(8, 8, 3) for name in names[2:]} | {"0.png": noise(4, 4, 3), "odd.png": noise(9, 8, 3)}
    write(tmp_path / "low", low)
    options = {"crop": 16, "cache_dir": tmp_path / "cache", "beside": Beside("low", tmp_path / "low", scale=2)}
    with pytest.raises(UserError, match=r"2 of 7 pictures cannot(?s:.)*skip_unreadable") as error:
        folders.prepare_folder(tmp_path / "high", **options)
    assert "16x16 pixels, and its low-resolution picture has 4x4; task.scale = 2 needs 8x8" in str(error.value)
    assert "1.png: no low-resolution picture" in str(error.value)
    options |= {"skip_unreadable": True, "eval_percent": 50}
    splits = [folders.folder_source(tmp_path / "high", split=split, **options) for split in ("train", "eval")]
    said = capsys.readouterr().err
    assert sum(map(len, splits)) == 5 and "2 of 7 pictures are left out" in said
    assert "1 of 7 pictures are cut at the right and below" in said and "odd.png: 17x19" in said
    (odd,) = (s.pair(i) for s in splits for i in range(len(s)) if s.label(i) == "odd.png")
    np.testing.assert_array_equal(odd.image, noise(19, 17, 3)[:18, :16])


def test_low_resolution_pictures_that_are_none_are_named(tmp_path):
    bad = "text.png", "empty.png", "pipe.png", "loop.png"
    write(tmp_path / "high", {name: noise(16, 16, 3) for name in (*bad, "good.png")})
    write(tmp_path / "eval", {"other.png": noise(20, 16, 3)})
    write(tmp_path / "low", {"good.png": noise(8, 8, 3), "other.png": noise(10, 8, 3)})
    (tmp_path / "low" / "text.png").write_bytes(b"no picture")
    (tmp_path / "low" / "empty.png").touch()
    os.mkfifo(tmp_path / "low" / "pipe.png")
    os.symlink("loop.png", tmp_path / "low" / "loop.png")
    options = {
        "crop": 16,
        "cache_dir": tmp_path / "cache",
        "beside": Beside("low", tmp_path / "low", tmp_path / "low", scale=2),
    }
    options |= {"eval_folder": tmp_path / "eval"}
    with pytest.raises(UserError, match="4 of 6 pictures cannot be used") as error:
        folders.prepare_folder(tmp_path / "high", **options)
    assert all(f"{tmp_path / 'low' / name}: cannot be read" in str(error.value) for name in bad)
    source = folders.folder_source(tmp_path / "high", split="train", skip_unreadable=True, **options)
    assert [source.label(i) for i in range(len(source))] == ["good.png"]


def test_pairs_have_a_preparation_and_a_fingerprint_of_their_own(tmp_path):
    write(tmp_path / "high", {f"{i}.png": noise(16, 16, 3) for i in range(3)})
    write(tmp_path / "low", {f"{i}.png": noise(8, 8, 3) for i in range(3)})
    options = {"crop": 16, "cache_dir": tmp_path / "cache"}
    paired = options | {"beside": Beside("low", tmp_path / "low", scale=2)}
    alone, both = (folders.prepare_folder(tmp_path / "high", **o) for o in (options, paired))
    images.write(tmp_path / "low" / "1.png", noise(8, 8, 3) ^ 1, overwrite=True)
    assert len({alone, both, folders.prepare_folder(tmp_path / "high", **paired)}) == 3
    source = pairs_of()
    other = dataclasses.replace(source, beside=lambda i: source.beside(i) ^ 1)
    alone = dataclasses.replace(source, beside=None)
    assert len({indexed.fingerprint(s) for s in (source, other, alone)}) == 3


def made_pairs(folder, changes=(), count=6, low_of=None):
    """Pictures of exactly the size of a crop, and folders of the pictures that a task's own kernel makes of them."""
    config = tiny.tiny_config(*changes)
    task, high = tasks.make(config), noise(count, 32, 32, 3)
    low = np.asarray(task.observe(None, high)).astype(np.uint8) if low_of is None else low_of(high)
    write(folder / "high", {f"{i}.png": picture for i, picture in enumerate(high)})
    write(folder / "low", {f"{i}x2.png": picture for i, picture in enumerate(low)})
    given = f"data.folder={folder / 'high'}", f"data.cache_dir={folder / 'cache'}", "data.eval_percent=40"
    return *given, f"data.lr_folder={folder / 'low'}"


def test_pairs_that_the_step_would_make_have_its_losses_and_gradient_to_the_bit(tmp_path):
    *changes, low = made_pairs(tmp_path)
    found = []
    for more in ([], [low]):
        built = experiment.build(tiny.tiny_config(*changes, *more, "network.channels=4", "objective.p=None"))
        shapes = jax.eval_shape(built.network.init, jax.random.key(0), np.zeros(built.inputs_shape()), np.ones(1))
        losses = make_losses(built, jax.random.key(7, impl="threefry2x32"), 1)
        gradient = jax.jit(jax.value_and_grad(lambda params, batch, f=losses: f(params, batch, 0, False)[0].mean()))
        pictures = batches.train_pictures(sources.open_source(built.config, "train"), 0, 32)
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        with batches.Batches(pictures, 4, sharding) as feed:
            assert ("beside" in feed(0)) == bool(more)
            found.append(jax.device_get(gradient(agreement.weights(shapes["params"]), feed(0))))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert found[0][0] > 0


def test_flips_turn_both():
    built, seen = fake(its_input, "data.flip=True").experiment, {}
    task = dataclasses.replace(
        built.task,
        condition=lambda low, sides: seen.update(low=np.asarray(low)) or built.task.condition(low),
        encode=lambda picture, cond: seen.update(picture=np.asarray(picture)) or built.task.encode(picture, cond),
    )
    image, low = (np.stack(part) for part in zip(*[places(16, 16, 2)] * 8, strict=True))
    batch = {"image": image, "beside": low, "row": np.arange(8, dtype=np.int32)}
    make_losses(built._replace(task=task), jax.random.key(0), 1)({}, batch, np.int32(0), False)
    np.testing.assert_allclose((seen["picture"] + 1) * 127.5, seen["low"].repeat(2, 1).repeat(2, 2), atol=1e-4)
    turned = [small[0, 0, 1] != 0 for small in seen["low"]]
    assert any(turned) and not all(turned)


def lighter(high):
    """Low-resolution pictures that no kernel of ours makes: every second pixel, lighter."""
    return high[:, ::2, ::2] // 2 + 100


CHANGES = "evaluation.samplers=ddim,", "evaluation.steps=1,2", "evaluation.pictures=2"


def test_everything_that_is_measured_begins_with_the_pictures_that_are_there(tmp_path):
    changes = made_pairs(tmp_path, low_of=lighter)
    model = fake(its_input, *CHANGES, *changes, "sampling.project=True")
    pictures = held_out.eval_pictures(model.experiment.config)
    np.testing.assert_array_equal(pictures.beside, lighter(pictures.image))
    made = make_inputs(model.experiment, pictures)
    np.testing.assert_array_equal(made.observed, pictures.beside)
    np.testing.assert_array_equal(made.given["observed"], pictures.beside)
    low = drawing.observe(model.experiment, pictures.image, beside=pictures.beside)
    np.testing.assert_array_equal(made.baseline, low[2])
    assert made.first(1).found and len(made.first(1).observed) == 1
    record, columns = measuring.evaluate({"model": model}, pictures, QUIET)
    assert "consistency" not in record["rows"][0] and "without consistency" in record["notes"][-1]
    np.testing.assert_array_equal(columns["low resolution"], pictures.beside)
    # What is drawn is pulled to the pictures that are there.
    (drawn,) = [value for name, value in columns.items() if name.endswith("2 steps")]
    shrunk = np.asarray(model.experiment.task.observe(None, drawn)).astype(int)
    assert (
        abs(shrunk - pictures.beside).mean() < abs(shrunk - model.experiment.task.observe(None, pictures.image)).mean()
    )
    assert gap.measure({"model": model}, pictures, QUIET)["pictures"] == 2


def test_restoration_at_equal_size(tmp_path):
    """From pictures that are half as bright."""
    high = noise(9, 32, 32, 3) // 2
    write(tmp_path / "high", {f"{i}.png": picture for i, picture in enumerate(high)})
    write(tmp_path / "low", {f"{i}.png": picture // 2 for i, picture in enumerate(high)})
    changes = f"data.folder={tmp_path / 'high'}", f"data.cache_dir={tmp_path / 'cache'}", "task.scale=1"
    model = fake(nothing, *CHANGES, *changes, f"data.lr_folder={tmp_path / 'low'}")
    config = model.experiment.config
    record, columns = whole.evaluate({"run": model}, sources.open_source(config, "eval"), QUIET)
    assert record["rows"][0]["name"] == "low resolution" and record["scale"] == 1
    assert "without consistency" in record["notes"][-1] and "consistency" not in record["rows"][0]
    # A residual of nothing.
    assert record["rows"][1]["psnr"] == pytest.approx(record["rows"][0]["psnr"], abs=0.01)
    np.testing.assert_array_equal(columns["original"] // 2, columns["low resolution"])
    source = sources.open_source(config, "train")
    pictures = batches.train_pictures(source, config.seed, 32)
    assert "kept in" in bad_step_files.save_batch(tmp_path, 1, source, pictures, config)
    with np.load(tmp_path / "bad_batches" / "step_0000001.npz") as kept:
        np.testing.assert_array_equal(kept["image"] // 2, kept["beside"])


def test_any_folders_of_pairs_are_measured(tmp_path):
    model = fake(nothing, *CHANGES, "evaluation.steps=2", "evaluation.seeds=0,1", "sampling.eta=1")
    high = [noise(47, 33, 3), noise(32, 48, 3)]
    write(tmp_path / "high", {f"{i}.png": picture for i, picture in enumerate(high)})
    write(tmp_path / "low", {f"{i}_LR2.png": lighter(p[None, : len(p) // 2 * 2, :32])[0] for i, p in enumerate(high)})
    with pytest.raises(UserError, match=r"48x32 pixels, and its low-resolution picture has 16x16"):
        whole.evaluate(
            {"run": model}, whole.folder_source(tmp_path / "high", Beside("low", tmp_path / "low", scale=2)), QUIET
        )
    images.write(tmp_path / "low" / "1_LR2.png", lighter(high[1][None])[0], overwrite=True)
    source = whole.folder_source(tmp_path / "high", Beside("low", tmp_path / "low", scale=2))
    record, columns = whole.evaluate({"run": model}, source, QUIET)
    assert columns["low resolution"].shape == (2, 16, 16, 3) and columns["original"].shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(columns["low resolution"], lighter(columns["original"]))
    assert "psnr_spread" in record["rows"][1] and "psnr_spread" not in record["rows"][0]
    (tmp_path / "low" / "0_LR2.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 pictures cannot be used(?s:.)*high/0\.png: no low-resolution"):
        whole.folder_source(tmp_path / "high", Beside("low", tmp_path / "low", scale=2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.lr_folder=low"], r"data\.lr_folder.*data\.folder"),
        (["data.folder=high", "data.lr_folder=low", "data.eval_folder=other"], r"data\.eval_lr_folder.*both"),
        (["data.folder=high", "data.lr_folder=low", "data.resize=40"], r"data\.resize = 40"),
        (["data.lr_key=lr"], r"data\.lr_key = 'lr'.*data\.tfds"),
        (["data.folder=high", "data.lr_folder=low", "task.name=unconditional"], "unconditional takes no pictures"),
        (["task.scale=1", "data.folder=a", "data.lr_folder=b", "sampling.project=True"], r"sampling\.project"),
        (["data.tfds=a", "data.lr_key=lr", "task.degradation=mixed"], r"are as they are \(or data\.lr_key=none\)"),
        (["data.tfds=a", "data.lr_key=lr", "task.scales=2,3"], r"one scale, task\.scale \(or data\.lr_key=none\)"),
    ],
)
def test_keys_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        tiny.tiny_config(*changes)


def test_at_equal_size_pictures_without_low_ones_are_refused(catalog_pairs):
    for changes in [], ["data.tfds=div2k/unknown_x4", f"data.tfds_dir={catalog_pairs}", "data.lr_key=none"]:
        config = tiny.tiny_config("task.scale=1", *changes)
        for split in "train", "eval":
            with pytest.raises(UserError, match=r"task\.scale = 1.*data\.lr_folder"):
                sources.open_source(config, split)


def test_a_model_of_equal_size_opens_without_its_pictures(tmp_path):
    workdir, _ = untrained_run(tmp_path / "run", 7, "task.scale=1", "data.folder=high", "data.lr_folder=low")
    exporting.export(workdir, tmp_path / "model", QUIET)
    opened = trained.load(tmp_path / "model").experiment
    assert opened.task.scale == 1 and opened.config.data.lr_folder is None


@pytest.fixture(scope="module")
def catalog_pairs(tmp_path_factory):
    """div2k/unknown_x4 in the catalog's own features, with two pairs."""
    folder = tmp_path_factory.mktemp("catalog")
    builder = tfds.builder("div2k/unknown_x4", data_dir=folder)
    pairs = [(noise(33, 34, 3) ^ i, noise(8, 8, 3) ^ i) for i in range(2)]
    examples = [(i, {"hr": Image.fromarray(high), "lr": Image.fromarray(low)}) for i, (high, low) in enumerate(pairs)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(builder), "_split_generators", lambda self, _: {s: iter(examples) for s in ("train", "test")}
        )
        builder.download_and_prepare(file_format="array_record")
    return folder


def test_a_dataset_with_both_is_read_with_both(catalog_pairs):
    changes = "data.tfds=div2k/unknown_x4", f"data.tfds_dir={catalog_pairs}"
    source = sources.open_source(tiny.tiny_config(*changes, "task.scale=4"), "train")
    pair = source.pair(0)
    assert pair.image.shape == (32, 32, 3) and pair.beside.shape == (8, 8, 3)
    for more in (["data.lr_key=none"], ["task.name=unconditional", "task.residual=False"]):
        assert not indexed.is_paired(sources.open_source(tiny.tiny_config(*changes, "task.scale=4", *more), "train"))
    with pytest.raises(UserError, match=r"34x33 pixels.*8x8; task\.scale = 2 needs 17x16"):
        batches.train_pictures(sources.open_source(tiny.tiny_config(*changes), "train"), 0, 16)[0]
    with pytest.raises(UserError, match=r"data\.resize"):
        sources.open_source(tiny.tiny_config(*changes, "data.resize=40"), "train")
    with pytest.raises(UserError, match=r"data\.lr_key.*lr, hr.*'low'"):
        catalog.tfds_source("div2k/unknown_x4", "train", catalog_pairs, beside=Beside("low", key="low"))


def test_a_run_of_before_goes_on_with_pictures_that_are_made(tmp_path, catalog_pairs):
    changes = "data.tfds=div2k/unknown_x4", f"data.tfds_dir={catalog_pairs}", "task.scale=4"
    config, record = tiny.tiny_config(*changes), tmp_path / "config.json"
    said = []

    def key():
        return workdirs.as_begun(tmp_path, config, said.append).data.lr_key

    assert key() is None and said == []
    old = config.to_dict()
    for later in ("lr_key", "lr_folder", "eval_lr_folder"):
        del old["data"][later]
    record.write_text(json.dumps(old))
    assert records.read(record).data.lr_key == key() == "none" and "as it began" in said[0]
    workdirs.check_same(tmp_path, config)
    record.write_text(json.dumps(config.to_dict()))
    assert key() is None

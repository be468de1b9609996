"""Pictures of other channels, depths and ranges, from the file to a trained model's results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
import tiny
from PIL import Image
from stand_ins import QUIET, fake, its_input

from dream_jax.config import records
from dream_jax.data import folders, packing, sources
from dream_jax.errors import UserError
from dream_jax.evaluation import measuring
from dream_jax.files import grids, images
from dream_jax.files.picture import Reading
from dream_jax.inference import drawing, tile_plans
from dream_jax.training.train_step import make_losses
from dream_jax.training.workdir import with_range


def smooth(seed, channels, top, dtype):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :44]
    waves = [np.sin(rows * a + b) * np.cos(columns * b + a) for a, b in rng.uniform(0.1, 0.4, (channels, 2))]
    return ((0.5 + 0.4 * np.stack(waves, -1)) * top).astype(dtype)


def make(folder, channels=3, top=65535, dtype=np.uint16, count=4):
    """TIFF files of these numbers."""
    folder.mkdir(parents=True)
    for seed in range(count):
        values = smooth(seed, channels, top, dtype)
        kind = {"photometric": "rgb"} if channels == 3 else {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(folder / f"{seed}.tif", values if channels > 1 else values[..., 0], **kind)
    return folder


def config_of(folder, *changes):
    return tiny.tiny_config(f"data.folder={folder}", f"data.cache_dir={folder.parent / 'cache'}", *changes)


def test_levels_are_kept_in_the_data(tmp_path):
    for channels, dtype, top in ((1, np.uint8, 255), (3, np.uint16, 65535), (5, np.uint16, 65535), (4, np.uint8, 255)):
        folder = make(tmp_path / f"{channels}" / "pictures", channels, top, dtype)
        config = config_of(folder, f"data.channels={channels}", f"data.bits={8 * np.dtype(dtype).itemsize}")
        train, held_out = (sources.open_source(config, split) for split in ("train", "eval"))
        found = {name.name(i): name[i] for name in (train, held_out) for i in range(len(name))}
        for seed in range(4):
            np.testing.assert_array_equal(found[f"{seed}.tif"], smooth(seed, channels, top, dtype))
            assert found[f"{seed}.tif"].dtype == dtype
    # As before where nothing is asked for: 8 bits, three channels.
    plain = sources.open_source(config_of(tmp_path / "3" / "pictures"), "train")[0]
    assert plain.dtype == np.uint8 and plain.shape[2] == 3


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint16), (5, np.uint16), (4, np.uint8)])
def test_prepared_pictures_have_no_limit_of_pixels(channels, dtype, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture = smooth(0, channels, np.iinfo(dtype).max, dtype)
    unpack = packing.make_unpack(Reading(channels, 8 * picture.dtype.itemsize))
    read = unpack(packing.pack(picture))
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, picture)


def test_a_range_gives_the_levels_between_its_ends(tmp_path):
    folder = make(tmp_path / "pictures", 3, 100.0, np.float32)
    with pytest.raises(UserError, match=r"data\.range"):
        make(tmp_path / "negative", 3, -5.0, np.float32)
        sources.open_source(config_of(tmp_path / "negative", "data.bits=16"), "train")
    source = sources.open_source(config_of(folder, "data.bits=16", "data.range=0,200"), "train")
    expected = smooth(int(source.name(0)[0]), 3, 100.0, np.float32) / 200 * 65535
    assert np.abs(source[0] - expected).max() <= 0.5
    with pytest.raises(UserError, match="outside the range 0,50"):
        sources.open_source(config_of(folder, "data.range=0,50"), "train")
    clipped = sources.open_source(config_of(folder, "data.range=0,50", "data.clip=True", "data.bits=16"), "train")
    assert clipped[0].max() == 65535


def test_a_percentile_becomes_the_range_of_the_run(tmp_path):
    folder = make(tmp_path / "pictures", 1, 4095)
    trained_on = [int(name[0]) for name in folders.split_files(folder, None, 10)["train"]]
    values = np.concatenate([smooth(seed, 1, 4095, np.uint16).ravel() for seed in trained_on])
    expected = np.percentile(values, (1, 99))
    config = config_of(folder, "data.channels=1", "data.percentile=99")
    settled = with_range(config, tmp_path)
    np.testing.assert_allclose(settled.data.range, expected, atol=1)
    assert with_range(settled, tmp_path) == settled and with_range(config_of(folder), tmp_path).data.range == ()
    # The same command goes on with the range that the run has, whatever became of the pictures.
    records.save(settled, tmp_path / "config.json")
    for seed in range(4):
        (folder / f"{seed}.tif").unlink()
    assert with_range(config, tmp_path) == settled
    with pytest.raises(UserError, match="no pictures"):
        with_range(config_of(folder, "data.channels=1", "data.percentile=98"), tmp_path)


def test_losses_of_sixteen_bits_and_other_channels():
    """Those of a picture of 16 bits are those of the same picture of 8."""
    batch, losses = {"row": np.arange(2, dtype=np.int32)}, {}
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 5), np.uint8)
    model = fake(its_input, "data.channels=5", "image_size=16", "task.name=unconditional", "task.residual=False")
    of = make_losses(model.experiment, jax.random.key(0, impl="threefry2x32"), 1)
    for levels in (pictures, pictures.astype(np.uint16) * 257):
        losses[levels.dtype.name], _ = of(model.params, batch | {"image": jnp.asarray(levels)}, jnp.int32(0), True)
    assert losses["uint8"].shape == (2,) and np.isfinite(losses["uint8"]).all()
    np.testing.assert_allclose(losses["uint16"], losses["uint8"], rtol=1e-5)


def test_models_of_other_channels_are_measured_and_upscale():
    """Five bands of 16 bits, by a network that says what it is given: the enlarged picture."""
    model = fake(its_input, "data.channels=5", "data.bits=16")
    pictures = np.stack([smooth(seed, 5, 65535, np.uint16)[:32, :32] for seed in range(2)])
    record, columns = measuring.evaluate({"model": model}, pictures, QUIET)
    assert all(np.isfinite(row["psnr"]) for row in record["rows"]) and record["rows"][0]["psnr"] > 30
    np.testing.assert_array_equal(grids.shown(columns["original"]), grids.shown(pictures))
    for column in columns.values():
        assert abs(grids.shown(column).astype(int).mean() - grids.shown(pictures).mean()) < 2
    planner = tile_plans.Planner(model, drawing.make_rows(model.experiment, "ddim", 1), 2**40)
    shape = tile_plans.shape_of(model.experiment, (16, 16), np.uint16)
    made = tile_plans.draw_observed(
        model, planner.rows, planner(shape), shape, [pictures[0, ::2, ::2]], [0], drawing.make_key(0)
    )
    assert made[0].shape == (32, 32, 5) and made[0].dtype == np.uint16


def test_grey_pictures_are_drawn(tmp_path):
    model = fake(its_input, "task.name=unconditional", "task.residual=False", "objective.kind=x0", "data.channels=1")
    rows = drawing.make_rows(model.experiment, "ddim", 1)
    inputs, draw = drawing.no_inputs(2, 32, 32), drawing.make_draw(model.experiment, model.mesh)
    drawn = drawing.draw_pictures(draw, model.params, inputs, rows, drawing.make_key(0), model.mesh, 2)
    assert drawn.shape == (2, 32, 32, 1) and drawn.dtype == np.uint8
    images.write(tmp_path / "a.png", drawn[0])
    with Image.open(tmp_path / "a.png") as made:
        assert made.mode == "L"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("data.bits=12", "8 or 16"),
        ("data.range=5,1", "rising"),
        ("data.channels=0", "at least 1"),
        ("evaluation.channel=y", "of three colours"),
        ("data.percentile=30", "between 50"),
    ],
)
def test_what_cannot_be(change, reason):
    with pytest.raises(UserError, match=reason):
        tiny.tiny_config("data.channels=2", change)

"""What lies beside pictures: conditions, masks and classes, found, prepared, cut and turned with them."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tifffile
import tiny
from photos import noise
from PIL import Image
from stand_ins import QUIET, fake, nothing

from dream_jax import tasks
from dream_jax.config import checks, keys, records
from dream_jax.data import batches, catalog, folders, held_out, indexed, listing, prepared_folders, sources
from dream_jax.data.beside import LABEL, Beside
from dream_jax.errors import UserError
from dream_jax.evaluation import whole
from dream_jax.files import images
from dream_jax.files.picture import MASK, USUAL, Reading
from dream_jax.tasks import value_range
from dream_jax.training import train_step
from dream_jax.training import workdir as workdirs


@pytest.fixture(autouse=True)
def stand_in_tasks(monkeypatch):
    """Tasks that take one kind each, of one channel or three."""

    def of(kind, needs, channels):
        def given(picture, mask=None):
            return picture if mask is None else np.float32(1) * picture * (mask < 128)

        return tasks.restoration(
            lambda keys, picture: picture,
            lambda observed, sides=None: value_range.to_float(observed),
            given=given,
            baseline=lambda observed, sides=None: value_range.to_float(observed[..., :channels]),
            baseline_name="given",
            beside=kind,
            needs_beside=needs,
            channels=channels,
            cond_channels=3,
        )

    for name, kind, needs in ("paired", "condition", True), ("inpainting", "mask", False):
        monkeypatch.setitem(tasks.TASKS, name, lambda *_, kind=kind, needs=needs: of(kind, needs, 3))
    classes = dataclasses.replace(tasks.unconditional(), beside="label", needs_beside=True)
    monkeypatch.setitem(tasks.TASKS, "class_conditional", lambda *_: classes)


def config_of(task, folder, *changes):
    where = f"data.folder={folder / 'pictures'}", f"data.cache_dir={folder / 'cache'}", "task.scale=1"
    return tiny.tiny_config(f"task.name={task}", "task.residual=False", "task.gain=1.0", *where, *changes)


def write(folder, pictures):
    for name, picture in pictures.items():
        images.write(folder / name, picture)
    return folder


def grid(height, width):
    """A picture that tells its places."""
    return np.stack(np.broadcast_arrays(np.arange(height)[:, None], np.arange(width), 7), axis=-1).astype(np.uint8)


# Reading.


def test_maps_of_classes_are_read_as_their_own_numbers(tmp_path):
    classes = np.random.default_rng(0).integers(0, 16, (20, 17)).astype(np.uint8)
    colours = Image.fromarray(classes)
    colours.putpalette(noise(768).tobytes())
    Image.fromarray(classes).save(tmp_path / "grey.png")
    colours.save(tmp_path / "palette.png", bits=4)
    colours.save(tmp_path / "palette.tif")
    colours.save(tmp_path / "palette.gif")
    Image.fromarray(classes.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([classes] * 3)).save(tmp_path / "three.bmp")
    Image.fromarray(classes > 7).save(tmp_path / "bit.png")
    np.save(tmp_path / "many.npy", classes[None].astype(np.int64))
    for bits in 8, 16:
        reading = Reading(1, bits, classes=True)
        for name in "grey.png", "palette.png", "palette.tif", "palette.gif", "deep.png", "three.bmp":
            found = images.read(tmp_path / name, reading)
            assert found.dtype == f"uint{bits}", name
            np.testing.assert_array_equal(found[..., 0], classes, err_msg=name)
        np.testing.assert_array_equal(images.read(tmp_path / "bit.png", reading)[..., 0], classes > 7)
        (member,) = listing.pictures(tmp_path / "many.npy").values()
        np.testing.assert_array_equal(listing.read(member.picture, reading)[..., 0], classes)
    large = classes.astype(np.uint16) * 100
    Image.fromarray(large).save(tmp_path / "large.png")
    np.testing.assert_array_equal(images.read(tmp_path / "large.png", Reading(1, 16, classes=True))[..., 0], large)


@pytest.mark.parametrize(
    ("name", "picture", "said"),
    [
        ("colours.png", noise(9, 8, 3), "one number a pixel"),
        ("lossy.jpg", noise(9, 8, 1), "JPEG does not keep.*PNG"),
        ("lossy.jp2", noise(9, 8, 1), "JPEG2000 does not keep.*PNG"),
        ("lossy.jp2", noise(9, 8, 1).astype(np.uint16), "JPEG2000 does not keep.*PNG"),
        ("large.png", np.full((9, 8, 1), 300, np.uint16), r"300, and data\.bits = 8 holds 0 to 255"),
    ],
)
def test_what_is_no_map_of_classes_is_refused(tmp_path, name, picture, said):
    images.write(tmp_path / name, picture)
    with pytest.raises(UserError, match=f"{name}.*{said}"):
        images.read(tmp_path / name, Reading(1, 8, classes=True))
    np.save(tmp_path / "floats.npy", np.full((1, 9, 8), 0.5))
    (member,) = listing.pictures(tmp_path / "floats.npy").values()
    with pytest.raises(UserError, match=r"floats\.npy.*whole numbers"):
        listing.read(member.picture, Reading(1, 8, classes=True))


def test_lossy_maps_of_classes_are_refused(tmp_path):
    picture, reading = Image.fromarray(noise(16, 24, 3) // 32 * 32), Reading(1, 8, classes=True)
    picture.save(tmp_path / "plain.webp", quality=90)
    picture.convert("RGBA").save(tmp_path / "alpha.webp", quality=90)
    moving = {"save_all": True, "append_images": [picture.rotate(180)]}
    picture.save(tmp_path / "frames.webp", quality=90, **moving)
    picture.save(tmp_path / "jpeg.tif", compression="jpeg")
    for name in "plain.webp", "alpha.webp", "frames.webp", "jpeg.tif":
        with pytest.raises(UserError, match=rf"{name}.*lossy (WEBP|TIFF) does not keep"):
            images.read(tmp_path / name, reading)
    grey = picture.convert("L").convert("RGB")
    for name, options in ("plain.webp", {}), ("frames.webp", {"save_all": True, "append_images": [picture]}):
        grey.save(tmp_path / name, lossless=True, **options)
        np.testing.assert_array_equal(images.read(tmp_path / name, reading), np.asarray(grey)[..., :1])


@pytest.mark.parametrize("white", [1, 5, 20, 127, 254, 255, 300])
def test_portable_maps_of_any_white_keep_their_classes(tmp_path, white):
    classes = (np.arange(24).reshape(4, 6) * 13 % (min(white, 255) + 1)).astype(np.uint16)
    head = b"6 4 %d\n" % white
    (tmp_path / "map.pgm").write_bytes(b"P5 " + head + classes.astype(">u2" if white > 255 else "u1").tobytes())
    found = images.read(tmp_path / "map.pgm", Reading(1, 8, classes=True))
    np.testing.assert_array_equal(found[..., 0], classes)
    if white < 256:
        (tmp_path / "map.pgm").write_bytes(b"P2 " + head + " ".join(map(str, classes.ravel())).encode())
        np.testing.assert_array_equal(images.read(tmp_path / "map.pgm", Reading(1, 8, classes=True)), found)


def test_masks_are_black_and_white_whatever_they_were(tmp_path):
    wanted = np.zeros((6, 4, 1), np.uint8)
    wanted[:3] = 255
    grey = np.where(wanted > 0, np.uint8(128), np.uint8(127))
    drawn = np.dstack([np.full((6, 4, 3), 255, np.uint8), wanted])
    kinds = {
        "grey": grey,
        "colours": np.repeat(grey, 3, -1),
        "deep": grey.astype(np.uint16) * 257,
        "deep ones": (wanted // 255).astype(np.uint16),
        "drawn": drawn,
        "ones": wanted // 255,
    }
    for name, picture in kinds.items():
        images.write(tmp_path / f"{name}.png", picture)
        np.testing.assert_array_equal(images.read(tmp_path / f"{name}.png", MASK), wanted, err_msg=name)
    tifffile.imwrite(tmp_path / "float.tif", wanted[..., 0] / np.float32(255))
    np.testing.assert_array_equal(images.read(tmp_path / "float.tif", MASK), wanted)
    arrays = {"u1": 1, "u2": 1, "i8": 1, "i4": 255, "f4": 1, "f8": 255, "f2": 0.5}
    for dtype, white in arrays.items():
        np.savez(tmp_path / "masks.npz", (wanted[None] > 0).astype(dtype) * np.asarray(white, dtype))
        (member,) = listing.pictures(tmp_path / "masks.npz").values()
        np.testing.assert_array_equal(listing.read(member.picture, MASK), wanted, err_msg=dtype)
    tifffile.imwrite(tmp_path / "bands.tif", noise(6, 4, 5), photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "other.tif", wanted[..., 0].astype(np.int32))
    for name, problem in ("bands.tif", "5 bands"), ("other.tif", "is not known"):
        with pytest.raises(UserError, match=rf"{name}.*{problem}.*save the mask as a PNG") as error:
            images.read(tmp_path / name, MASK)
        assert "data." not in str(error.value)


def test_black_masks_by_name_are_said_and_those_that_cannot_be_read_named(tmp_path, capsys):
    write(tmp_path / "pictures", {f"{i}.png": picture for i, picture in enumerate(noise(3, 40, 36, 3))})
    write(tmp_path / "masks", {f"{i}.png": mask for i, mask in enumerate(np.zeros((3, 40, 36, 1), np.uint8))})
    dark = Image.fromarray(np.ones((40, 36), np.uint8), "P")
    dark.putpalette([0, 0, 0, 128, 0, 0])
    dark.save(tmp_path / "masks" / "1.png")
    sources.open_source(config_of("inpainting", tmp_path, f"data.mask_folder={tmp_path / 'masks'}"), "train")
    assert "have masks that are black, so that nothing is to be painted" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"no mask can be used.*data\.mask_folder(?s:.)*a\.png"):
        folders.masks_source(tmp_path / "none", tmp_path / "cache", skip_unreadable=True)


# Conditions.


def test_keys_of_conditions_are_those_that_help(tmp_path, capsys):
    write(tmp_path / "pictures", {f"{i}.png": picture for i, picture in enumerate(noise(3, 40, 36, 3))})
    deep = noise(3, 40, 36, 4).astype(np.uint16) * 257
    write(tmp_path / "deep", {f"{i}.png": picture for i, picture in enumerate(deep)})
    sources.open_source(config_of("paired", tmp_path, f"data.condition_folder={tmp_path / 'deep'}"), "train")
    said = capsys.readouterr().err
    assert "3 of 3 pictures have conditions that have more than 8 bits" in said and "data.condition_bits=16" in said
    assert "have conditions that have transparency, which is not used: " in said

    read = sources.beside_of(config_of("paired", tmp_path)).reading
    tifffile.imwrite(tmp_path / "bands.tif", noise(6, 4, 5), photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "floats.tif", noise(6, 4, 3) / np.float32(255), photometric="rgb")
    tifffile.imwrite(tmp_path / "whole.tif", noise(6, 4).astype(np.int32))
    np.save(tmp_path / "floats.npy", noise(1, 6, 4, 3) / 255)
    problems = {
        "bands.tif": "channels",
        "floats.tif": "range=LOW,HIGH",
        "whole.tif": "range",
        "floats.npy": "range=LOW",
    }
    for name, key in problems.items():
        (item,) = (
            listing.pictures(tmp_path / name).values() if name[-3:] == "npy" else (listing.Entry(tmp_path / name),)
        )
        with pytest.raises(UserError, match=rf"{name}.*data\.condition_{key}"):
            listing.read(item.picture, read)
    with pytest.raises(UserError, match=r"outside the range 0,0\.5 .*data\.condition_range.*data\.clip"):
        listing.read(tmp_path / "floats.tif", read._replace(span=(0.0, 0.5)))
    assert listing.read(tmp_path / "floats.tif", read._replace(span=(0.0, 1.0))).shape == (6, 4, 3)


def deep_targets(folder, count=6, side=70):
    """Maps of 16 bits, far less deep than colours, beside colours that tell the same places."""
    for i in range(count):
        places = grid(side, side - 9)
        images.write(folder / "pictures" / f"{i}.png", places[..., :1].astype(np.uint16) * 256 + places[..., 1:2])
        images.write(folder / "conditions" / f"{i}.png", places)
    return Beside("condition", folder / "conditions", reading=Reading(3, 8))


def told(pair):
    """The places that a deep target and its condition tell."""
    target = pair.image.astype(int)
    return np.concatenate([target // 256, target % 256], -1), pair.beside[..., :2]


def test_conditions_of_other_channels_and_bits_are_cut_with_their_pictures(tmp_path):
    lies = deep_targets(tmp_path)
    options = {"crop": 16, "cache_dir": tmp_path / "cache", "beside": lies, "reading": Reading(1, 16)}
    source = folders.folder_source(tmp_path / "pictures", split="train", **options)
    assert len(source) > 5 and source.kind == "condition"
    pictures = batches.train_pictures(source, 0, crop=16)
    for i in range(20):
        pair = pictures[i]
        assert pair.image.shape == (16, 16, 1) and pair.image.dtype == np.uint16
        assert pair.beside.shape == (16, 16, 3) and pair.beside.dtype == np.uint8
        np.testing.assert_array_equal(*told(pair))
    held = held_out.middle_crops(folders.folder_source(tmp_path / "pictures", split="eval", **options), 16, 1)
    np.testing.assert_array_equal(*told(held))
    assert indexed.fingerprint(source) != indexed.fingerprint(dataclasses.replace(source, beside=None))


def test_everything_of_a_config_with_conditions(tmp_path):
    write(tmp_path / "pictures", {f"{i}.png": picture for i, picture in enumerate(noise(5, 40, 36, 3))})
    write(tmp_path / "dark", {f"{i}.png": picture // 2 for i, picture in enumerate(noise(5, 40, 36, 3))})
    config = config_of("paired", tmp_path, f"data.condition_folder={tmp_path / 'dark'}", "data.eval_percent=40")
    pictures = held_out.eval_pictures(config)
    np.testing.assert_array_equal(pictures.image // 2, pictures.beside)
    given = sources.beside_given(config, tmp_path / "dark")
    source = whole.folder_source(tmp_path / "pictures", given, sources.reading_of(config))
    np.testing.assert_array_equal(source.pair(3).image // 2, source.pair(3).beside)
    # Nothing is said of measures that the task does not have.
    few = "evaluation.whole=True", "evaluation.pictures=1"
    record, _ = whole.evaluate(
        {"run": fake(nothing, "task.name=paired", "task.residual=False", "task.scale=1", *few)}, source, QUIET
    )
    assert not [note for note in record["notes"] if "consistency" in note]
    bits = config_of("paired", tmp_path, f"data.condition_folder={tmp_path / 'dark'}", "data.condition_bits=16")
    assert sources.open_source(bits, "train").pair(0).beside.dtype == np.uint16
    with pytest.raises(UserError, match=r"paired: it needs conditions.*--low"):
        sources.beside_given(config, None)
    with pytest.raises(UserError, match=r"paired.*conditions.*data\.condition_folder, data\.condition_key"):
        sources.open_source(config_of("paired", tmp_path), "train")
    images.write(tmp_path / "dark" / "2.png", noise(40, 35, 3), overwrite=True)
    (tmp_path / "dark" / "4.png").unlink()
    with pytest.raises(UserError, match=r"2 of 5(?s:.)*36x40 pixels, and its condition has 35x40") as error:
        sources.open_source(config, "train")
    assert "4.png: no condition of its name" in str(error.value)


def test_flips_turn_pictures_and_conditions_alike_and_leave_classes():
    built, seen = fake(nothing, "task.name=paired", "task.residual=False", "task.scale=1").experiment, {}
    task = dataclasses.replace(
        built.task,
        condition=lambda given, sides=None: seen.update(given=np.asarray(given)) or value_range.to_float(given),
        encode=lambda picture, cond: seen.update(picture=np.asarray(picture)) or picture,
    )
    image = np.stack([grid(16, 16)] * 8)
    batch = {"image": image, "beside": image.copy(), "row": np.arange(8, dtype=np.int32)}
    key = jax.random.key(0, impl="threefry2x32")
    train_step._draw(built._replace(task=task), key, batch)
    np.testing.assert_allclose((seen["picture"] + 1) * 127.5, seen["given"], atol=1e-4)
    turned = [small[0, 0, 1] != 0 for small in seen["given"]]
    assert any(turned) and not all(turned)
    numbers = np.arange(8, dtype=np.uint16)[:, None, None, None]
    shown = dataclasses.replace(
        task,
        given=lambda label: seen.update(label=np.asarray(label)) or image.astype(np.float32),
    )
    train_step._draw(built._replace(task=shown), key, batch | {"beside": numbers})
    np.testing.assert_array_equal(seen["label"], numbers)


# Masks.


def holes(count, height=24, width=30):
    """Masks with one white pixel each, at another place."""
    found = np.zeros((count, height, width, 1), np.uint8)
    for i in range(count):
        found[i, i + 2, i + 2] = 255
    return found


def test_masks_by_name_are_cut_with_their_pictures(tmp_path, capsys):
    for i in range(6):
        places = grid(40, 44)
        images.write(tmp_path / "pictures" / f"{i}.png", places)
        images.write(
            tmp_path / "masks" / f"{i}.png",
            np.where(places[..., :1] % 3 == places[..., 1:2] % 3, 255, 0).astype(np.uint8),
        )
    config = config_of("inpainting", tmp_path, f"data.mask_folder={tmp_path / 'masks'}", "data.eval_percent=30")
    source = sources.open_source(config, "train")
    assert "each picture has its own, by name" in capsys.readouterr().err
    pair = batches.train_pictures(source, 0, 32)[3]
    np.testing.assert_array_equal(pair.beside[..., 0] > 0, pair.image[..., 0] % 3 == pair.image[..., 1] % 3)
    evaluated = sources.open_source(config, "eval")
    named = {s.label(i) for s in (source, evaluated) for i in range(len(s))}
    assert named == {f"{i}.png" for i in range(6)} and len(source) + len(evaluated) == 6
    # One for evaluation alone; training draws its own.
    config = config_of("inpainting", tmp_path, f"data.eval_mask_folder={tmp_path / 'masks'}")
    assert not indexed.has_beside(sources.open_source(config, "train"))
    pair = held_out.eval_pictures(config)
    np.testing.assert_array_equal(pair.beside[..., 0] > 0, pair.image[..., 0] % 3 == pair.image[..., 1] % 3)
    images.write(tmp_path / "masks" / "2.png", noise(9, 9, 1), overwrite=True)
    with pytest.raises(UserError, match=r"2\.png: 44x40 pixels, and its mask has 9x9"):
        sources.open_source(config_of("inpainting", tmp_path, f"data.mask_folder={tmp_path / 'masks'}"), "train")


def test_any_masks_are_drawn_by_seed_and_place_in_the_run(tmp_path, capsys):
    write(tmp_path / "pictures", {f"{i}.png": picture for i, picture in enumerate(noise(6, 48, 40, 3))})
    write(tmp_path / "masks", {f"m{i}.png": mask for i, mask in enumerate(holes(4))} | {"0.png": holes(5)[4]})
    config = config_of("inpainting", tmp_path, f"data.mask_folder={tmp_path / 'masks'}")
    source = sources.open_source(config, "train")
    assert "any of 5, brought to its size (1 of 5 pictures have one" in capsys.readouterr().err
    assert len(source.masks) == 5 and source.masks.label(1) == "m0.png"
    resized = [images.resize_nearest(source.masks[i], 32, 32) for i in range(5)]
    numbers = {mask.tobytes(): i for i, mask in enumerate(resized)}
    sequences = [batches.train_pictures(source, seed, 32) for seed in (0, 0, 1)]
    drawn = [
        [numbers[s[k].beside.tobytes()] for k in range(count)] for s, count in zip(sequences, (40, 9, 9), strict=True)
    ]
    assert drawn[0][:9] == drawn[1] != drawn[2] and set(drawn[0]) == set(range(5))
    # The pictures are those of a run without masks, and rows are the same whoever reads them.
    plain = batches.train_pictures(dataclasses.replace(source, masks=None), 0, 32)
    np.testing.assert_array_equal(plain[7], sequences[0][7].image)
    with ThreadPoolExecutor(2) as pool:
        every = batches.batch_rows(sequences[0], 2, 8, range(8), pool)
        some = batches.batch_rows(sequences[0], 2, 8, (3, 6), pool)
    np.testing.assert_array_equal(every.beside[[3, 6]], some.beside)
    held = held_out.middle_crops(source, 32, 5)
    np.testing.assert_array_equal(held.beside, resized)
    other = dataclasses.replace(source, masks=indexed.Source(lambda i: holes(1)[0], 1))
    assert len({indexed.fingerprint(s) for s in (source, other, dataclasses.replace(source, masks=None))}) == 3
    # Of a task without masks the preparation is the same one, and none is made anew for another crop's masks.
    assert len(list((tmp_path / "cache").glob("pictures-*"))) == len(list((tmp_path / "cache").glob("masks-*"))) == 1


def test_masks_that_are_none_are_named(tmp_path):
    write(tmp_path, {"black.png": noise(9, 9, 1) // 4, "good.png": holes(1)[0]})
    (tmp_path / "text.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2 of 3(?s:.)*black\.png: nothing of it is to be painted(?s:.)*text\.png"):
        folders.masks_source(tmp_path, tmp_path / "cache")
    assert len(folders.masks_source(tmp_path, tmp_path / "cache", skip_unreadable=True)) == 1


def test_whole_pictures_have_masks_of_their_size(tmp_path, capsys):
    write(tmp_path / "pictures", {"a.png": noise(33, 47, 3), "b.png": noise(32, 34, 3)})
    write(tmp_path / "masks", {"one.png": holes(1)[0]})
    lies = Beside("mask", tmp_path / "masks", reading=MASK)
    model = fake(nothing, "task.name=inpainting", "task.residual=False", "task.scale=1", "evaluation.whole=True")
    source = whole.folder_source(tmp_path / "pictures", lies)
    found = whole._observe(model.experiment, source, 0)
    hole = images.resize_nearest(holes(1)[0], 33, 47) > 0
    np.testing.assert_array_equal(found.observed[0], np.where(hole, 0, noise(33, 47, 3)))
    assert "the pictures from masks: each example gets any of 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="super_resolution takes no masks"):
        whole.evaluate({"run": fake(nothing, "evaluation.whole=True")}, source, QUIET)


def test_the_nearest_of_other_sides():
    mask = noise(6, 9, 1)
    np.testing.assert_array_equal(images.resize_nearest(mask, 18, 27), mask.repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(images.resize_nearest(mask, 2, 3), mask[1::3, 1::3])
    np.testing.assert_array_equal(images.resize_nearest(mask, 6, 9), mask)


# Classes.


def of_classes(folder, names=("dog", "cat", "ant")):
    for number, name in enumerate(names):
        for i in range(4):
            images.write(folder / name / "deeper" / f"{i}.png", np.full((70, 20, 3), 40 * number + i, np.uint8))
    return folder


def test_labels_are_the_sorted_names_of_folders(tmp_path):
    of_classes(tmp_path / "pictures")
    config = checks.validate(workdirs.with_classes(config_of("class_conditional", tmp_path, "image_size=16")))
    assert config.data.classes == ("ant", "cat", "dog") and workdirs.with_classes(config) is config
    every = {"dog": 0, "cat": 1, "ant": 2}
    for split in "train", "eval":
        source = sources.open_source(config, split)
        for i in range(len(source)):
            pair, name = source.pair(i), source.label(i)
            assert pair.beside.shape == (1, 1, 1) and pair.beside.dtype == np.uint16
            assert config.data.classes[int(pair.beside.item())] == name.partition("/")[0]
            assert pair.image[0, 0, 0] // 40 == every[name.partition("/")[0]]
    pictures = batches.train_pictures(sources.open_source(config, "train"), 0, 16)
    assert pictures[0].image.shape == (16, 16, 3) and pictures[0].beside.shape == (1, 1, 1)
    assert {("ant", "cat", "dog")[2 - p.image[0, 0, 0] // 40] for p in (pictures[i] for i in range(9))} <= {*every}
    assert all(2 - p.image[0, 0, 0] // 40 == p.beside.item() for p in (pictures[i] for i in range(9)))


def test_classes_of_several_folders_are_one_list_and_held_out_ones_are_among_them(tmp_path):
    a, b = of_classes(tmp_path / "A" / "x", ("cat", "dog")), of_classes(tmp_path / "B" / "x", ("ant", "cat"))
    assert listing.classes(f"{a},{b}") == ("ant", "cat", "dog")
    found = listing.labelled(f"{a},{b}", ("ant", "cat", "dog"))
    assert {entry.beside for name, entry in found.items() if "/cat/" in name} == {1} and len(found) == 16
    lies = Beside("label", reading=LABEL, classes=listing.classes(a))
    with pytest.raises(UserError, match=r"4 of 8(?s:.)*ant is none of data\.classes"):
        folders.folder_source(a, split="eval", crop=16, eval_folder=b, cache_dir=tmp_path / "cache", beside=lies)


def test_data_without_classes_is_refused(tmp_path):
    of_classes(tmp_path / "pictures", ("cat",))
    with pytest.raises(UserError, match=r"data\.folder.*one class, cat"):
        workdirs.with_classes(config_of("class_conditional", tmp_path))
    images.write(tmp_path / "pictures" / "loose.png", noise(20, 20, 3))
    with pytest.raises(UserError, match=r"1 of 5(?s:.)*pictures/loose\.png: it lies in no folder of a class"):
        workdirs.with_classes(config_of("class_conditional", tmp_path))
    config = tiny.tiny_config("task.name=class_conditional", "task.residual=False", "task.scale=1")
    with pytest.raises(UserError, match=r"class_conditional.*needs classes.*data\.label_key"):
        sources.open_source(config, "train")


def test_a_run_goes_on_with_its_own_classes_only(tmp_path):
    of_classes(tmp_path / "pictures")
    config = workdirs.with_classes(config_of("class_conditional", tmp_path))
    records.save(checks.validate(config), tmp_path / "config.json")
    assert records.read(tmp_path / "config.json").data.classes == ("ant", "cat", "dog")
    workdirs.check_same(tmp_path, config)
    (tmp_path / "pictures" / "dog").rename(tmp_path / "pictures" / "fox")
    other = workdirs.with_classes(config_of("class_conditional", tmp_path))
    with pytest.raises(UserError, match="other classes; the data has also fox and not dog"):
        workdirs.check_same(tmp_path, other)


@pytest.fixture(scope="module")
def catalog_scenes(tmp_path_factory):
    """A dataset with pictures, maps and classes."""

    class Scenes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            picture, label = tfds.features.Image(shape=(20, 20, 3)), tfds.features.ClassLabel(names=["b", "a"])
            features = {"image": picture, "map": tfds.features.Image(shape=(20, 20, 1)), "label": label}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            examples = [
                (i, {"image": Image.fromarray(noise(20, 20, 3)), "map": Image.fromarray(noise(20, 20)), "label": i % 2})
                for i in range(3)
            ]
            return {split: iter(examples) for split in ("train", "test")}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Scenes(data_dir=tmp_path_factory.mktemp("scenes"), file_format="array_record")
    builder.download_and_prepare()
    return builder


def test_a_dataset_of_the_catalog_has_conditions_and_classes(catalog_scenes, monkeypatch):
    monkeypatch.setattr(catalog, "_catalog_builder", lambda name, data_dir: catalog_scenes)
    common = "data.tfds=scenes", "task.residual=False", "task.scale=1", "image_size=16"
    config = tiny.tiny_config(
        "task.name=paired", *common, "data.image_key=map", "data.condition_key=image", "data.channels=1"
    )
    pair = sources.open_source(config, "train").pair(1)
    np.testing.assert_array_equal(pair.image, noise(20, 20, 1))
    np.testing.assert_array_equal(pair.beside, noise(20, 20, 3))
    changes = "task.name=class_conditional", *common, "data.image_key=image"
    config = checks.validate(workdirs.with_classes(tiny.tiny_config(*changes)))
    assert config.data.classes == ("b", "a")
    source = sources.open_source(config, "eval")
    assert sorted(source.pair(i).beside.item() for i in range(3)) == [0, 0, 1] and source.kind == "label"
    with pytest.raises(UserError, match=r"data\.classes: it names 2 classes, and scenes/label has 3"):
        named = Beside("label", classes=("a", "b"))
        monkeypatch.setattr(catalog_scenes.info.features["label"], "_num_classes", 3)
        catalog.tfds_source("scenes", "train", image_key="image", beside=named)
    with pytest.raises(UserError, match=r"scenes/label: a picture has no class \(-1\)"):
        catalog._label("scenes/label", -1)
    with pytest.raises(UserError, match=r"data\.label_key.*label.*'map' is not"):
        workdirs.with_classes(tiny.tiny_config(*changes, "data.label_key=map"))
    with pytest.raises(UserError, match=r"data\.condition_key.*image, map.*'depth' is not"):
        changes = "task.name=paired", *common, "data.image_key=image", "data.condition_key=depth"
        sources.open_source(tiny.tiny_config(*changes), "train")


# Preparations and configs.


def test_preparations_are_named_by_what_they_hold_and_old_ones_stay(tmp_path):
    """The names are those that versions before conditions, masks and classes gave."""
    for folder in "high", "low":
        (tmp_path / folder).mkdir()
        for i in range(3):
            path = tmp_path / folder / f"{i}.png"
            path.write_bytes(bytes(10 + i))
            os.utime(path, ns=(10**18, 10**18 + i))

    def name(lies, *making):
        splits = folders.split_files(tmp_path / "high", None, 10, lies)
        making = prepared_folders.Making(*making)
        return prepared_folders.Place(tmp_path, "high", splits, making, "1.0.0").find().name

    low, deep = Beside("low", tmp_path / "low", scale=2), Reading(1, 16, (0.0, 4095.0), True)
    assert name(None, 16, None, False, False, None, USUAL) == "high-4e4ef4d5ccfbac27"
    assert name(low, 16, None, False, False, low, USUAL) == "high-1b81545635f867b1"
    assert name(low, 16, None, True, True, low, deep) == "high-d1c171c5c1d949c2"
    assert name(None, 16, 20, False, False, None, Reading(1, 8)) == "high-ed9b660e84c03ac9"
    same = low._replace(scale=1), low._replace(kind="condition"), low._replace(kind="condition", reading=deep)
    same = *same, low._replace(kind="mask", reading=MASK)
    names = {name(lies, 16, None, False, False, lies, Reading(1, 8)) for lies in same}
    names |= {name(None, 16, None, False, False, None, r) for r in (Reading(1, 8), MASK, Reading(1, 8, classes=True))}
    assert len(names) == 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.condition_folder=a"], r"data\.condition_folder = 'a'.*super_resolution takes low-resolution"),
        (["data.mask_folder=a"], r"data\.mask_folder = 'a': it is of masks"),
        (["data.condition_bits=16"], r"data\.condition_bits = 16: it is of conditions"),
        (["data.classes=a,b"], r"data\.classes.*it is of classes"),
        (["task.name=unconditional", "data.label_key=a"], "unconditional takes no pictures"),
        (["task.name=inpainting", "data.lr_folder=a", "data.folder=b"], r"data\.lr_folder.*inpainting takes masks"),
        (["task.name=paired", "data.condition_folder=a"], r"data\.condition_folder.*data\.folder"),
        (
            ["task.name=paired", "data.folder=a", "data.condition_folder=b", "data.eval_folder=c"],
            r"data\.eval_condition_folder.*both have conditions",
        ),
        (["task.name=paired", "data.folder=a", "data.condition_folder=b", "data.resize=40"], r"data\.resize = 40"),
        (["task.name=paired", "data.condition_key=a"], r"data\.condition_key.*data\.tfds"),
        (["task.name=class_conditional", "data.classes=a,a"], r"data\.classes.*different names"),
    ],
)
def test_keys_that_do_not_fit_the_task_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        tiny.tiny_config("task.residual=False", "task.gain=1.0", *changes)


def test_pairs_have_a_whole_scale():
    flat = keys.flatten(tiny.tiny_config("data.folder=a", "data.lr_folder=b", "task.scale=3", "image_size=48"))
    config = keys.nest(flat)
    with config.unlocked(), config.ignore_type():
        config.task.scale = 2.5
    with pytest.raises(UserError, match=r"task\.scale = 2\.5: .*whole"):
        checks._check_beside(config, config.data)

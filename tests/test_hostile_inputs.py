"""The short form of `python -m benchmarks.hostile_inputs`, and regressions of what its long form found."""

import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from photos import PHOTOS
from PIL import Image

from benchmarks import hostile_files, hostile_inputs, torch_files
from dream_jax import __main__ as program
from dream_jax.config import checks, command_line, keys, records
from dream_jax.data import batches, folders, indexed
from dream_jax.errors import UserError
from dream_jax.files import decoding, images, tensors
from dream_jax.metrics import weights as metric_weights
from dream_jax.networks import pytorch
from dream_jax.tasks import resize


def photo():
    return images.read(PHOTOS / "coffee.png")[100:164, 100:196]


def test_nothing_hurts(tmp_path):
    photos = [photo(), images.read(PHOTOS / "astronaut.png")[100:164, 100:196]]
    found = hostile_inputs.run(tmp_path, photos, pictures=24, weights=10, config=15, large=False)
    assert len(found) > 500
    assert [finding for finding in found if finding.outcome == "violation"] == []


def test_a_reader_that_hurts_is_caught(tmp_path):
    """The watch itself: what hangs, takes memory, dies, runs code or says nothing useful is a violation."""
    for name in "hangs", "grows", "dies", "raises", "is vague", "is garbled":
        (tmp_path / name).touch()
    worker = hostile_inputs.Worker(hostile_inputs.READERS | {"mutant": mutant})
    try:
        assert worker.read("mutant", str(tmp_path / "hangs"), limit=0.5)["outcome"] == "violation"
        for name in "grows", "dies", "raises", "is vague", "is garbled":
            result = worker.read("mutant", str(tmp_path / name))
            assert result["outcome"] == "violation", name
        assert worker.read("mutant", str(tmp_path / "is sound"))["outcome"] == "read"
    finally:
        worker.close()


def mutant(path):
    match Path(path).name:
        case "hangs":
            while True:
                pass
        case "grows":
            return bytes(5 * 2**28) + b"1"
        case "dies":
            os.abort()
        case "raises":
            return 1 / 0
        case "is vague":
            raise UserError("something is wrong")
        case "is garbled":
            error = UserError(path)
            error.args = (f"{path}: \x1b[2J",)
            raise error


def test_messages_hold_nothing_that_a_terminal_obeys(capsys):
    assert str(UserError("a\x1b[2Jb\r\nc\udcff")) == "a\\x1b[2Jb\\r\nc\\udcff"
    assert program.main(["train", "--config", "\x1b[2J\n.py", "--workdir", "x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: \\x1b[2J\\n.py: there is no such config file") and said.count("\n") == 1
    assert said.removesuffix("\n").isprintable()


@pytest.mark.parametrize("name", ["icon.png", "script.png", "pcx.png"])
def test_only_the_formats_that_are_named_are_opened(tmp_path, name):
    file = io.BytesIO()
    if name == "icon.png":
        Image.new("L", (256, 256)).save(file, "ICO")
    elif name == "pcx.png":
        Image.new("L", (16, 16)).save(file, "PCX")
    else:
        file.write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match="none of PNG, JPEG"):
        images.read(file.getvalue())


def test_scans_and_pieces_without_end():
    assert images.read(hostile_files.jpeg_of_many_scans(64, 64, 90)).shape == (64, 64, 3)
    with pytest.raises(UserError, match="100 scans"):
        images.read(hostile_files.jpeg_of_many_scans(64, 64, 120))
    # A marker's two bytes within a segment's data, or behind the picture, are no scan.
    sound = hostile_files.jpeg_of_many_scans(64, 64, 2)
    harmless = b"\xff\xfe" + struct.pack(">H", 802) + b"\xff\xda" * 400
    np.testing.assert_array_equal(images.read(sound[:2] + harmless + sound[2:] + b"\xff\xda" * 400), images.read(sound))
    with pytest.raises(UserError, match="more pieces"):
        images.read(b"GIF89a\1\0\1\0\x80\0\0" + bytes(6) + b"!\xfe\1a\0" * 2**20 + b";")


def test_a_file_with_holes_is_not_read(tmp_path):
    with open(tmp_path / "a.webp", "wb") as file:
        file.write(b"RIFF\xf8\xff\xff\xffWEBPVP8L")
        file.truncate(2**36)
    with pytest.raises(UserError, match="bytes are more than"):
        images.read(tmp_path / "a.webp")


def test_bands_change_nothing(tmp_path, monkeypatch):
    whole = {}
    for name, content in hostile_files.sound_pictures(photo()).items():
        (tmp_path / name).write_bytes(content)
        whole[name] = images.read_picture(tmp_path / name)

    def small_bands(picture):
        for top in range(0, picture.size[1], 7):
            for left in range(0, picture.size[0], 11):
                right, bottom = min(left + 11, picture.size[0]), min(top + 7, picture.size[1])
                yield (slice(top, bottom), slice(left, right)), picture.crop((left, top, right, bottom))

    monkeypatch.setattr(decoding, "_bands", small_bands)
    for name, expected in whole.items():
        picture = images.read_picture(tmp_path / name)
        np.testing.assert_array_equal(picture.colours, expected.colours)
        np.testing.assert_array_equal(picture.alpha, expected.alpha)
        assert picture.extras == expected.extras


def test_long_pictures_are_resized_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(resize, "BLOCK", 40)
    resize.resize_matrices.cache_clear()
    try:
        for width, target in ((100, 200), (200, 50), (41, 40), (90, 31)):
            picture = rng.integers(0, 256, (4, width, 3), np.uint8)
            expected = Image.fromarray(picture).resize((target, 4), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(resize.resize(picture, 4, target), expected)
            assert max(matrix.size for matrix, _ in resize.resize_matrices("pil_bicubic", width, target)) < 2 * 40 * 170
    finally:
        resize.resize_matrices.cache_clear()


def test_a_line_is_not_resized_to_a_square():
    with pytest.raises(UserError, match="more than"):
        images.resize_shorter_side(np.zeros((1, 60000, 3), np.uint8), 256)
    source = indexed.Source(lambda index: np.zeros((1, 60000, 3), np.uint8), 1)
    with pytest.raises(UserError, match=r"picture 0 .*data\.resize"):
        batches.train_pictures(source, 0, 16, resize=256)[0]


def test_a_folder_of_what_is_no_picture_is_prepared(tmp_path, capsys):
    folder = tmp_path / "folder\n\udcff"
    cases = list(hostile_files.odd_files(folder, photo()))
    (folder / "empty.png").touch()
    Image.new("RGB", (60000, 1)).save(folder / "line.png")
    # All of these but the folder, which is not taken for a picture, and the empty one and the line.
    unusual = [case for case in cases if case.readable is False]
    wanted = f"^{len(unusual) - 1 + 2} of .*skip_unreadable"
    with pytest.raises(UserError, match=wanted):
        folders.prepare_folder(folder, crop=16, cache_dir=tmp_path / "cache", resize=64)
    options = {"crop": 16, "cache_dir": tmp_path / "cache", "skip_unreadable": True, "eval_percent": 50, "resize": 64}
    splits = [folders.folder_source(folder, split=split, **options) for split in ("train", "eval")]
    assert sum(map(len, splits)) >= len(hostile_files.ODD_NAMES)
    said = capsys.readouterr().err
    assert "loop.png" in said and "\x1b[2J" not in said
    with pytest.raises(UserError, match=r"every picture of .*folder\\n\\udcff is also"):
        folders.prepare_folder(folder, crop=16, cache_dir=tmp_path / "cache", eval_folder=folder / "..")


def test_every_message_about_weights_names_the_file_and_the_array(tmp_path):
    sound = torch_files.official_weights()
    arrays = sound | {"downs.0.weight": np.full_like(sound["downs.0.weight"], np.nan)}
    path = tmp_path / "two\nlines.safetensors"
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(UserError, match=r"downs\.0\.weight.*not finite"):
        pytorch.load_sr3(tensors.read_weights(path), 4)
    with pytest.raises(UserError, match=r"two\\nlines\.safetensors: the weights of inception lack"):
        metric_weights.load("inception", path)
    with pytest.raises(UserError, match=r"two\\nlines\.pth: no such file"):
        tensors.read_weights(tmp_path / "two\nlines.pth")


def test_archives_are_never_unpacked(tmp_path, monkeypatch):
    """Members named as other folders' files are at most read, and then by the name that the pickle asks for."""
    folder = tmp_path / "in"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in "extract", "extractall", "_extract_member":
        monkeypatch.setattr(zipfile.ZipFile, name, lambda *_, **__: pytest.fail("an archive was unpacked"))
    sound = hostile_files.torch_file(folder, torch_files.official_weights())
    for content, readable in hostile_files.special_archives(folder, sound, large=False).values():
        (folder / "w.pth").write_bytes(content)
        try:
            tensors.read_weights(folder / "w.pth")
            assert readable is not False
        except UserError as error:
            assert readable is not True, error
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "w.pth"]


def test_an_experiment_that_ends_the_program_or_is_none(tmp_path):
    for name, (content, readable) in hostile_files.special_configs().items():
        (tmp_path / name).write_bytes(content)
        if readable:
            checks.validate(command_line.load(str(tmp_path / name)))
        else:
            with pytest.raises(UserError) as caught:
                checks.validate(command_line.load(str(tmp_path / name)))
            # Of a key that is missing the name of the key is told.
            assert name in str(caught.value) or "lacks a key" in str(caught.value)


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "schedule.num_steps=10**9",
            "schedule.num_steps=1000000000",
            "network.channels=1000000",
            "data.workers=99999",
        ),
        *("image_size=1048576", "network.channel_multipliers=" + "1," * 1000, "network.num_res_blocks=100000"),
        *("sampling.eps_scale=inf", "optimizer.learning_rate=1e300", "optimizer.learning_rate=" + "9" * 400),
        *("seed=-1", f"steps={2**63}", "evaluation.steps=" + "(" * 1000, "objective.p=" + "-" * 100_000 + "1"),
    ],
)
def test_numbers_that_no_machine_can_take(argument):
    key = argument.partition("=")[0]
    with pytest.raises(UserError, match=key) as caught:
        checks.validate(command_line.override(keys.defaults(), [f"--config.{argument}"]))
    assert len(str(caught.value)) < 1000


def test_a_workdir_of_another_kind(tmp_path):
    path = tmp_path / "config.json"
    for content in hostile_files.special_jsons().values():
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            checks.validate(records.read(path))
        assert str(caught.value).isprintable()
    path.unlink()
    for make in (os.mkfifo, os.mkdir, lambda p: os.symlink("config.json", p)):
        make(path)
        with pytest.raises(UserError, match=r"config\.json"):
            records.read(path)
        path.rmdir() if path.is_dir() else path.unlink()
    path.write_text(json.dumps(keys.defaults().to_dict() | {"stepz": 3}))
    with pytest.raises(UserError, match="'stepz' is unknown; did you mean 'steps'"):
        checks.validate(records.read(path))

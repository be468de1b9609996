"""Pictures in arrays and zips, and in several folders: what is sound is read, what is hostile refused with its name."""

import builtins
import io
import os
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from photos import noise
from PIL import Image

from dream_jax.data import archives, folders, listing
from dream_jax.errors import UserError
from dream_jax.evaluation import whole
from dream_jax.files import images

PICTURES = noise(12, 20, 24, 3)


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def write_npy(path, array):
    np.save(path, array)


def write_npz(path, array):
    np.savez(path, other=np.arange(5), pictures=array)


def write_compressed(path, array):
    np.savez_compressed(path, pictures=array)


def write_hdf5(path, array):
    with h5py.File(path, "w") as file:
        file.create_dataset("a/pictures", data=array, chunks=True, compression="gzip")
        file["labels"] = np.arange(5)


def write_zip(path, array):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, picture in enumerate(array):
            archive.writestr(f"{number:07d}.png", png(picture))
        archive.writestr("__MACOSX/._0.png", b"none")
        archive.writestr("README.txt", b"none")


WRITERS = {
    "p.npy": write_npy,
    "p.npz": write_npz,
    "q.npz": write_compressed,
    "p.h5": write_hdf5,
    "p.HDF5": write_hdf5,
    "p.zip": write_zip,
}


@pytest.mark.parametrize("name", WRITERS)
def test_pictures_come_back_as_they_were(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, PICTURES)
    found = listing.pictures(path)
    names = [f"{name}/{i:07d}{'.png' if name.endswith('zip') else ''}" for i in range(12)]
    assert list(found) == names
    for entry, picture in zip(found.values(), PICTURES, strict=True):
        np.testing.assert_array_equal(listing.read(entry.picture), picture)
    source = whole.folder_source(str(path))
    assert [source.label(i) for i in range(12)] == names and np.array_equal(source[3], PICTURES[3])
    options = {"crop": 16, "cache_dir": tmp_path / "cache", "eval_percent": 40}
    splits = [folders.folder_source(path, split=split, **options) for split in ("train", "eval")]
    held_out = {splits[1].label(i) for i in range(len(splits[1]))}
    assert sum(map(len, splits)) == 12 and 0 < len(held_out) < 12
    for source in splits:
        for i in range(len(source)):
            np.testing.assert_array_equal(source[i], PICTURES[names.index(source.label(i))])
    # A picture's side of the split is a matter of its name.
    longer = tmp_path / "longer" / name
    longer.parent.mkdir()
    WRITERS[name](longer, np.concatenate([PICTURES, PICTURES[:4]]))
    again = folders.folder_source(longer, split="eval", **options)
    assert held_out <= {again.label(i) for i in range(len(again))}


@pytest.mark.parametrize("array", [PICTURES[..., 0], PICTURES[..., :1], np.asfortranarray(PICTURES)])
def test_grey_arrays_and_those_in_other_orders(tmp_path, array):
    for name in ("p.npy", "p.npz", "p.h5"):
        WRITERS[name](tmp_path / name, array)
        read = [listing.read(entry.picture) for entry in listing.pictures(tmp_path / name).values()]
        np.testing.assert_array_equal(read, np.broadcast_to(array.reshape(12, 20, 24, -1), PICTURES.shape))


def test_low_resolution_pictures_may_lie_in_arrays(tmp_path):
    np.save(tmp_path / "high.npy", PICTURES)
    np.savez(tmp_path / "low.npz", PICTURES[:11, ::2, ::2])
    found = list(listing.pictures(tmp_path / "high.npy", tmp_path / "low.npz", 2).values())
    np.testing.assert_array_equal(listing.read(found[5].beside), PICTURES[5, ::2, ::2])
    assert "high.npy/0000011: no low-resolution picture" in found[11].problem


def test_one_of_several_arrays_is_named(tmp_path):
    np.savez(tmp_path / "p.npz", a=PICTURES, b=PICTURES[:, 1:])
    with pytest.raises(UserError, match="several arrays of pictures, a, b; name one as FILE:KEY"):
        listing.pictures(tmp_path / "p.npz")
    found = listing.pictures(f"{tmp_path / 'p.npz'}:b")
    np.testing.assert_array_equal(listing.read(found["p.npz/0000002"].picture), PICTURES[2, 1:])
    with pytest.raises(UserError, match="holds no array c; there are a, b"):
        listing.pictures(f"{tmp_path / 'p.npz'}:c")
    prepared = {folders.prepare_folder(f"{tmp_path / 'p.npz'}:{k}", crop=16, cache_dir=tmp_path / "c") for k in "ab"}
    assert len(prepared) == 2


@pytest.mark.parametrize("array", [PICTURES > 3, PICTURES.astype(complex), noise(4, 5), noise(2, 3, 8, 8, 3)])
@pytest.mark.parametrize("name", ["p.npy", "q.npz", "p.h5"])
def test_other_arrays_are_refused_in_words(tmp_path, array, name):
    WRITERS[name](tmp_path / name, array)
    with pytest.raises(UserError, match=rf"{name}: pictures are arrays of numbers .*; here are .*{array.dtype}"):
        listing.pictures(tmp_path / name)


@pytest.mark.parametrize("name", ["p.npy", "q.npz", "p.h5"])
def test_arrays_of_other_channels_are_refused_when_read(tmp_path, name):
    WRITERS[name](tmp_path / name, noise(3, 8, 8, 5))
    (entry, *_) = listing.pictures(tmp_path / name).values()
    with pytest.raises(UserError, match=rf"{name}/0000000.*5 bands, and 3 are asked for"):
        listing.read(entry.picture)


def test_without_h5py_it_is_asked_for(tmp_path, monkeypatch):
    write_hdf5(tmp_path / "p.h5", PICTURES)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="pip install h5py"):
        listing.pictures(tmp_path / "p.h5")


def test_several_folders_and_files_are_one(tmp_path):
    for folder, count in (("a/train", 3), ("b/train", 2), ("a/train/below", 1)):
        for i in range(count):
            images.write(tmp_path / folder / f"{i}.png", PICTURES[i])
    np.save(tmp_path / "c.npy", PICTURES[:2])
    both = f"{tmp_path / 'a/train'}, {tmp_path / 'b/train'},{tmp_path / 'c.npy'}"
    assert list(listing.pictures(both)) == [
        *("a/train/0.png", "a/train/1.png", "a/train/2.png", "a/train/below/0.png", "b/train/0.png", "b/train/1.png"),
        *("c.npy/0000000", "c.npy/0000001"),
    ]
    # One inside the other: each picture once.
    nested = listing.pictures(f"{tmp_path / 'a'},{tmp_path / 'a/train'},{tmp_path / 'b'}")
    assert len(nested) == 6 and next(iter(nested)) == "a/train/0.png"
    options = {"crop": 16, "cache_dir": tmp_path / "cache"}
    splits = [folders.folder_source(both, split=split, **options) for split in ("train", "eval")]
    assert sum(map(len, splits)) == 8 and "train-and-2-more-" in next((tmp_path / "cache").iterdir()).name
    with pytest.raises(UserError, match="names one folder twice"):
        listing.pictures(f"{tmp_path / 'a'},{tmp_path / 'a'}")
    with pytest.raises(UserError, match="one for each of the 2 folders"):
        listing.pictures(f"{tmp_path / 'a'},{tmp_path / 'b'}", tmp_path / "a")
    # A folder whose name has a comma is one.
    (tmp_path / "a").rename(tmp_path / "a,b")
    assert len(listing.pictures(str(tmp_path / "a,b"))) == 4


@pytest.mark.parametrize("name", ["faces.h5", "faces.npz"])
def test_arrays_of_one_file_are_several_sources(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".npz":
        np.savez(path, a=PICTURES[:2], b=PICTURES[2:5])
    else:
        with h5py.File(path, "w") as file:
            file["a"], file["b"] = PICTURES[:2], PICTURES[2:5]
    found = listing.pictures(f"{path}:a,{path}:b")
    assert list(found) == [f"{name}:{key}/{i:07d}" for key, count in (("a", 2), ("b", 3)) for i in range(count)]
    for entry, picture in zip(found.values(), PICTURES, strict=False):
        np.testing.assert_array_equal(listing.read(entry.picture), picture)
    # The low-resolution pictures of one may lie in the other.
    assert [entry.beside.place for entry in listing.pictures(f"{path}:a", f"{path}:b").values()] == [
        "b/0000000",
        "b/0000001",
    ]
    with pytest.raises(UserError, match="names one folder twice"):
        listing.pictures(f"{path}:a,{path}:a")


@pytest.mark.parametrize("name", ["p.txt", "p.mat"])
def test_any_other_file_is_no_folder(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="it is a file, not a folder"):
        listing.pictures(tmp_path / name)


# What is hostile


def npy_header(shape, descr="|u1", length=None):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text) if length is None else length) + text


def zipped(members, method=zipfile.ZIP_DEFLATED, claimed=None):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = file.getvalue()
    if claimed is not None:
        # The size in the list of members, and in the member's own head.
        size = struct.pack("<I", len(next(iter(members.values()))))
        content = content.replace(size, struct.pack("<I", claimed))
    return content


def hdf5(fill):
    file = io.BytesIO()
    with h5py.File(file, "w") as made:
        fill(made)
    return file.getvalue()


def external(file):
    file.create_dataset("p", (4, 8, 8), np.uint8, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file):
    layout = h5py.VirtualLayout((4, 8, 8), np.uint8)
    layout[:] = h5py.VirtualSource("/etc/passwd", "p", (4, 8, 8))
    file.create_virtual_dataset("p", layout)


def linked(file):
    file["p"] = h5py.ExternalLink("other.h5", "p")
    file["q"] = h5py.SoftLink("/q")


class Evil:
    def __reduce__(self):
        return builtins.open, ("/tmp/never", "w")


def saved(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def sound(writer, folder):
    writer(folder / "sound", PICTURES)
    (made,) = folder.iterdir()
    return made.read_bytes()


HOSTILE = {
    "lies.npy": npy_header((10**9, 1000, 1000, 3)) + b"12",
    "negative.npy": npy_header((-1, 8, 8)) + bytes(64),
    "many.npy": npy_header((2**23, 1, 1)) + bytes(2**23),
    "none.npy": npy_header((0, 8, 8)),
    "overflow.npy": npy_header((2**40, 2**40, 3)),
    "long_header.npy": npy_header((1, 8, 8), length=2**32 - 1) + bytes(64),
    "pickle.npy": saved(np.array([Evil()], object), allow_pickle=True),
    "object_claim.npy": npy_header((4, 8, 8), "|O") + bytes(256),
    "code.npy": b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').abort()".ljust(64),
    "deep.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000,
    "empty.npy": b"",
    "pickle.npz": zipped({"p.npy": saved(np.array([Evil()], object), allow_pickle=True)}),
    "lies.npz": zipped({"p.npy": npy_header((10**6, 64, 64, 3)) + bytes(100)}),
    "bomb.npz": zipped({"p.npy": npy_header((2**27 // 64, 8, 8)) + bytes(2**27)}),
    "small_claim.npz": zipped({"p.npy": npy_header((4, 8, 8)) + bytes(256)}, claimed=40),
    "none.npz": zipped({"readme.txt": b"none"}),
    "many.npz": zipped({f"{i}.npy": b"" for i in range(5000)}),
    "none.zip": zipped({"a/b.txt": b"none"}),
    "encrypted.zip": zipped({"a.png": png(PICTURES[0])}).replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    ),
    "bzip.zip": zipped({"a.png": png(PICTURES[0])}, zipfile.ZIP_BZIP2),
    "bomb.zip": zipped({"a.bmp": b"BM" + bytes(2**27)}),
    "damaged.zip": zipped({"a.png": b"no picture"}),
    "directory.zip": b"PK\5\6" + bytes(8) + struct.pack("<IIH", 2**31, 0, 0),
    "text.zip": b"no zip",
    "text.h5": b"no HDF5",
    "external.h5": hdf5(external),
    "virtual.h5": hdf5(virtual),
    "links.h5": hdf5(linked),
    "chunks.h5": hdf5(lambda file: file.create_dataset("p", (2**15, 256, 256), "u1", chunks=(2**14 + 1, 256, 256))),
    "lies.h5": hdf5(lambda file: file.create_dataset("p", (2**40, 64, 64, 3), "u1", chunks=(1, 64, 64, 3))),
    "null.h5": hdf5(lambda file: file.create_dataset("p", dtype="u1", shape=None, data=h5py.Empty("u1"))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused_by_name(tmp_path, name):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_bytes(HOSTILE[name])
    with pytest.raises(UserError) as caught:
        for entry in listing.pictures(path).values():
            listing.read(entry.picture)
    said = str(caught.value)
    assert name in said and said.isprintable() and len(said) < 1000
    assert not Path("/tmp/never").exists() and [p.name for p in tmp_path.rglob("*")] == ["in", name]


@pytest.mark.parametrize("name", WRITERS)
def test_any_damage_ends_in_pictures_or_in_words(tmp_path, name):
    WRITERS[name](tmp_path / name, PICTURES)
    whole_file, rng, path = (tmp_path / name).read_bytes(), np.random.default_rng(0), tmp_path / f"x{name}"
    for trial in range(40):
        content = bytearray(whole_file)
        if trial % 2:
            content = content[: rng.integers(len(content))]
        for place in rng.integers(max(len(content), 1), size=trial // 4) if content else ():
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            for entry in listing.pictures(path).values():
                assert listing.read(entry.picture).dtype == np.uint8
        except UserError as error:
            assert path.name in str(error) and str(error).isprintable()


def test_a_member_is_read_no_further_than_it_claims(tmp_path):
    (tmp_path / "p.zip").write_bytes(zipped({"a.png": bytes(2**27)}, claimed=1000))
    (entry,) = listing.pictures(tmp_path / "p.zip").values()
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"p\.zip/a\.png"):
            listing.read(entry.picture)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_names_in_a_zip_lead_nowhere(tmp_path):
    names = ["../../outside.png", "/etc/passwd.png", "a/../b.png", "c\x1b[2J\n.png", "C:\\d.png"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p.zip").write_bytes(zipped({name: png(PICTURES[i]) for i, name in enumerate(names)}))
    options = {"crop": 16, "cache_dir": tmp_path / "cache", "eval_percent": 40}
    splits = [folders.folder_source(tmp_path / "in" / "p.zip", split=split, **options) for split in ("train", "eval")]
    labels = [source.label(i) for source in splits for i in range(len(source))]
    assert len(labels) == 5 and all(label.isprintable() and label.startswith("p.zip/") for label in labels)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "cache"} and len(os.listdir(tmp_path / "in")) == 1


def test_thousands_of_members_are_prepared_each_once(tmp_path):
    small = png(PICTURES[0, :16, :16])
    path = tmp_path / "p.zip"
    path.write_bytes(zipped({f"{i}.png": small for i in range(3000)}, zipfile.ZIP_STORED))
    assert len(archives.members(path)) == 3000
    # One content under thousands of names.
    entry = struct.pack("<I", 2**31 - 1)
    many = zipped({f"{i}.png": small for i in range(300)}, zipfile.ZIP_STORED)
    path.write_bytes(many.replace(struct.pack("<I", len(small)), entry))
    with pytest.raises(UserError, match=r"p\.zip"):
        archives.members(path)

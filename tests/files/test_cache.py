from pathlib import Path

import pytest

from dream_jax.__main__ import main
from dream_jax.errors import UserError
from dream_jax.files import cache


@pytest.mark.parametrize(
    ("chosen", "xdg", "root"),
    [
        ("~/mine", "/xdg", "~/mine"),
        ("", "/xdg", "/xdg/dream_jax"),
        (None, "~/xdg", "~/xdg/dream_jax"),
        (None, "", "~/.cache/dream_jax"),
        (None, None, "~/.cache/dream_jax"),
    ],
)
def test_the_root_is_what_the_environment_says(chosen, xdg, root, monkeypatch):
    for name, value in (("DREAM_JAX_CACHE", chosen), ("XDG_CACHE_HOME", xdg)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cache.root() == Path(root).expanduser()


def test_what_is_cached_is_listed_and_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DREAM_JAX_CACHE", str(tmp_path / "cache"))
    assert main(["cache"]) == 0 and cache.entries() == []
    (tmp_path / "outside").write_bytes(b"x" * 999)
    for name, size in (("faces-1/a/records", 300), ("faces-1/b", 50), ("weights/w.pth", 1000)):
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / name).write_bytes(b"x" * size)
    (tmp_path / "cache" / "faces-1" / "link").symlink_to(tmp_path / "outside")
    assert [entry[:2] for entry in cache.entries()] == [("weights", 1000), ("faces-1", 350)]
    for wrong in ("../outside", "faces-1/a", "nothing"):
        with pytest.raises(UserError, match="no such entry"):
            cache.remove(["weights", wrong])
    assert main(["cache", "--remove", "faces-1"]) == 0
    assert "removed faces-1" in capsys.readouterr().out
    assert [entry.name for entry in cache.entries()] == ["weights"] and (tmp_path / "outside").exists()

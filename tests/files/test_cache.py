from pathlib import Path

import pytest

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

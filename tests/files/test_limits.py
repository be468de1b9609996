import pytest

from dream_jax.errors import UserError
from dream_jax.files import limits


def test_the_limit_is_the_default_or_what_the_environment_says(monkeypatch):
    monkeypatch.delenv("DREAM_JAX_MAX_PIXELS", raising=False)
    assert limits.most_pixels() == 2**26
    for said, meant in (("", 2**26), ("1", 1), (" 200000000 ", 200_000_000)):
        monkeypatch.setenv("DREAM_JAX_MAX_PIXELS", said)
        assert limits.most_pixels() == meant
    for said in ("0", "-5", "2**28", "1e9", "many", "9" * 100, "٣"):
        monkeypatch.setenv("DREAM_JAX_MAX_PIXELS", said)
        with pytest.raises(UserError, match="whole number"):
            limits.most_pixels()

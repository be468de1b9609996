"""Folders on the Hugging Face Hub, by the address hf://OWNER/NAME or hf://OWNER/NAME@REVISION."""

import functools
import re
from pathlib import Path

from dream_jax.errors import UserError, shown

# What the client's own words leave open.
_REASONS = {
    "RepositoryNotFoundError": "there is no such repository, or it is private: log in with `hf auth login`",
    "GatedRepoError": "its owner asks for consent first: give it on the repository's page, and log in",
    "RevisionNotFoundError": "the repository has no such revision",
}

_ADDRESS = re.compile(r"hf://([\w.-]{1,96}/[\w.-]{1,96})(?:@([\w./-]{1,200}))?", re.ASCII)


def is_address(place) -> bool:
    """Whether a place is an address on the Hub, and no folder."""
    return str(place).startswith("hf://")


@functools.cache
def fetch(address: str, names: tuple[str, ...]) -> Path:
    """The folder, in the cache of huggingface_hub, of a repository's files with these names; no others are fetched.

    With HF_HUB_OFFLINE=1 it is what the cache holds.

    Raises UserError for what is no address, for a repository or revision that cannot be had, and where the package
    huggingface_hub is missing.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise UserError(f"{shown(address)[:300]}: not an address on the Hub; write hf://OWNER/NAME or ...@REVISION")
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{address}: pip install huggingface_hub, or download the folder yourself") from error
    try:
        return Path(huggingface_hub.snapshot_download(found[1], revision=found[2], allow_patterns=list(names)))
    except Exception as error:  # those of whatever HTTP library it uses, too
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = _REASONS.get(type(error).__name__) or (said or [type(error).__name__])[0]
        raise UserError(f"{address}: cannot be fetched ({shown(reason)[:300]})") from error

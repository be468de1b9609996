"""How long the list of members of a zip is, before it is read as a whole."""

from pathlib import Path


def directory_length(path: Path) -> int:
    """The bytes that a zip says its list of members has, as `zipfile` looks for it; any number where it is damaged."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 2**17, 0))
        tail = file.read()
    # A file of more than 4 GiB has a second record before this one.
    end = len(tail) - 22 if tail[-22:].startswith(b"PK\5\6") else tail.rfind(b"PK\5\6")
    length = tail[end + 12 : end + 16]
    if tail[end - 20 :].startswith(b"PK\6\7"):
        length = tail[end - 36 : end - 28]
    return int.from_bytes(length, "little")

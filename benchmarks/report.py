"""Where benchmarks leave what they measured: a page to read and the figures behind it."""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def write(name: str, text: str, record: dict) -> None:
    """Writes a benchmark's page and its record to benchmarks/results/NAME.md and .json, and prints the page."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def versions(*packages: str) -> dict:
    """{"python": version} and those of the installed packages."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def listed(versions: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}"


def commit() -> str:
    """The checkout's commit, with "-dirty" where files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"

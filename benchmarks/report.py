"""Where benchmarks leave what they measured: a page to read and the figures behind it."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def write(name: str, text: str, record: dict) -> None:
    """Prints a benchmark's page and writes it and its record to benchmarks/results/NAME.md and .json."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")

"""How long a training run takes from the command to its first step, with and without kept compiled programs.

    python -m benchmarks.start_up

starts the quickstart twice in each turn, first with an empty folder for compiled programs and then with what that start
left in it, and ends each as soon as its first step is done. Prints a table and writes it to benchmarks/results/.
"""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report

CONFIG, REPEATS = "configs/quickstart.py", 3
FIRST_STEP = re.compile(r"first step after ([0-9.]+) s, (.*)")


def start(cache: Path, workdir: Path) -> dict:
    """Seconds on the clock and of processors from the command to the first step, and of these in the step itself."""
    command = [sys.executable, "-m", "dream_jax", "train", "--config", CONFIG, "--workdir", str(workdir)]
    environment = os.environ | {"DREAM_JAX_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    begun = time.monotonic()
    process = subprocess.Popen(command, cwd=report.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    said = next((found for line in process.stdout if (found := FIRST_STEP.search(line))), None)
    seconds = time.monotonic() - begun
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    _, _, usage = os.wait4(process.pid, 0)
    if said is None:
        raise SystemExit("the run ended before its first step")
    processors = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "processors": processors, "step": float(said[1]), "why": said[2]}


def main() -> int:
    turns = []
    for _ in range(REPEATS):
        folder = Path(tempfile.mkdtemp())
        try:
            turn = {kind: start(folder / "cache", folder / kind) for kind in ("cold", "kept")}
        finally:
            shutil.rmtree(folder)
        turns.append(turn)
        print(json.dumps(turn), flush=True)
    ratios = {
        key: [turn["kept"][key] / turn["cold"][key] for turn in turns] for key in ("seconds", "processors", "step")
    }
    names = {"seconds": "on the clock", "processors": "of processors", "step": "on the clock, first step alone"}
    table = "\n".join(
        f"| {names[key]} | {statistics.median(turn['cold'][key] for turn in turns):.1f} | "
        f"{statistics.median(turn['kept'][key] for turn in turns):.1f} | "
        f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |"
        for key, values in ratios.items()
    )
    versions = report.versions("jax", "jaxlib", "flax")
    device = report.machine()
    text = f"""# From the command to the first step

`python -m benchmarks.start_up` on {device}: {report.listed(versions)}.

`{CONFIG}`, medians of {REPEATS} turns, each a start without compiled programs (cold) and one with those that the
first left (kept); the ratio is kept to cold, turn by turn. Other work on the machine lengthens what the clock shows.

| seconds | cold | kept | ratio (range) |
|---|---|---|---|
{table}
"""
    report.write("start_up", text, {"device": device, "versions": versions, "turns": turns})
    return int(any(turn["kept"]["why"] != "its program from the cache" for turn in turns))


if __name__ == "__main__":
    sys.exit(main())

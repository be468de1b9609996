"""Runs training on a Slurm cluster: python launch/slurm.py --nodes 2 --gpus 8 --time 24:00:00 -- train ...

Writes a job script to LOGS/NAME.sh and submits it; --dry_run prints it instead. Each node runs one process with all of
its GPUs, or, with --per_gpu, one process a GPU. --sbatch=OPTION adds any option of sbatch: --sbatch=--account=X.

The run saves --save_before seconds ahead of the time limit, and the job is queued again until the run is done. It is
also started again when it crashed, lost a process or hangs (--restarts, see launch/local.py), within the same job, and
Slurm queues it again when a node fails or the job is pre-empted. `scancel JOB` ends it for good. Workdir and logs lie
on a file system that all nodes share.
"""

import argparse
import functools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import local

# Each task says its number to dream_jax.
TASK = 'DREAM_JAX_PROCESS=$SLURM_PROCID exec "$@"'

SCRIPT = """#!/bin/bash
{directives}

# Slurm signals this shell when the job is cancelled or pre-empted, and acts itself; before the time limit it signals
# the run alone.
trap asked=1 TERM
{run}
status=$?
if [ "$status" -eq 143 ] && [ -z "$asked" ]; then
  echo "launch: saved before the time limit; queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="dream_jax", help="of the job")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1, help="of each node; 0 trains on CPUs")
    parser.add_argument("--per_gpu", action="store_true", help="one process a GPU")
    parser.add_argument("--time", default="24:00:00", help="limit of the job")
    parser.add_argument("--save_before", type=int, default=300, metavar="SECONDS")
    parser.add_argument("--restarts", type=int, default=3, metavar="K", help="in a row, without a new checkpoint")
    parser.add_argument("--logs", default="logs", help="folder")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION")
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="+", help="after --: what would follow `python -m dream_jax`")
    options = parser.parse_args()
    if options.command[0] != "train":
        parser.error("only train runs on a cluster")
    if options.nodes < 1 or options.gpus < 0 or options.restarts < 0 or options.save_before < 1:
        parser.error("--nodes and --save_before must be at least 1, --gpus and --restarts at least 0")
    if options.per_gpu and not options.gpus:
        parser.error("--per_gpu needs --gpus")
    if options.inside:
        return run(options.command, options.restarts)
    script = make_script(options)
    if options.dry_run:
        print(script, end="")
        return 0
    logs = Path(options.logs)
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"{options.name}.sh"
    path.write_text(script)
    try:
        return subprocess.run(["sbatch", str(path)]).returncode
    except FileNotFoundError:
        parser.error(f"sbatch is not on the PATH; {path} is written: submit it on a node of the cluster")


def make_script(options) -> str:
    logs = Path(options.logs).resolve()
    directives = {
        "job-name": options.name,
        "chdir": os.getcwd(),
        "output": f"{logs}/%x-%j.log",
        # Queued again, the job goes on in the same log.
        "open-mode": "append",
        "nodes": options.nodes,
        "ntasks-per-node": options.gpus if options.per_gpu else 1,
        "time": options.time,
        "signal": f"TERM@{options.save_before}",
    }
    if options.gpus:
        directives["gpus-per-node"] = options.gpus
    if options.per_gpu:
        directives["gpus-per-task"] = 1
    lines = [f"--{name}={value}" for name, value in directives.items()] + ["--requeue", *options.sbatch]
    inside = sys.executable, str(Path(__file__).resolve()), "--inside", "--restarts", str(options.restarts)
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {shlex.quote(line)}" for line in lines),
        run=shlex.join([*inside, "--", *options.command]),
    )


def run(command: list[str], restarts: int) -> int:
    """Within the job, on its first node: starts the run on all nodes until it has ended; returns its exit status."""
    listed = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    first = listed.stdout.split()[0]

    def make():
        (environment,) = local.make_environments(1)
        if int(os.environ["SLURM_NTASKS"]) > 1:
            environment["DREAM_JAX_COORDINATOR"] = f"{first}:{local.free_port()}"
            environment["DREAM_JAX_PROCESSES"] = os.environ["SLURM_NTASKS"]
        return [environment]

    srun = [
        "srun",
        "--kill-on-bad-exit=1",
        "bash",
        "-c",
        TASK,
        "dream_jax",
        sys.executable,
        "-m",
        "dream_jax",
        *command,
    ]
    return local.supervise(srun, make, restarts, functools.partial(local.newest_checkpoint, command))


if __name__ == "__main__":
    sys.exit(main())

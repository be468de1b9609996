"""Trains on GPU machines of Google Cloud:

    python launch/gpu_vm.py run --name my-run --zone us-central1-a --machine_type g2-standard-8 --delete -- \\
        train --config configs/sr3_photos_4x.py --workdir runs/my-run --config.checkpoint.directory=gs://BUCKET/my-run

makes the machines (spot ones, unless --on_demand), copies the files that git tracks, installs, starts the run and shows
what it says. A run whose machine was pre-empted goes on, on a new one, from its newest checkpoint in the bucket. Ctrl-C
leaves the run going: `follow` shows it again, `delete` deletes the machines, and --delete does when the run has ended.
With --hosts N, N machines train together. --dry_run prints the commands of gcloud instead.
"""

import argparse
import random
import sys

import cloud


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cloud.add_options(parser)
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--machine_type", default="g2-standard-8", help="default: one L4")
    parser.add_argument("--accelerator", help="type=TYPE,count=N, for machine types that come without GPUs")
    parser.add_argument("--image_family", default="common-cu128-ubuntu-2204-nvidia-570", help="with NVIDIA's driver")
    parser.add_argument("--image_project", default="deeplearning-platform-release")
    parser.add_argument("--disk", type=int, default=200, metavar="GB")
    parser.add_argument("--cuda", default="cuda12", help="plugin of jax: cuda12, cuda13")
    options = cloud.parse(parser)
    if options.hosts < 1:
        parser.error("--hosts must be at least 1")
    # One for all restarts of this run: only its machines listen.
    port = random.Random(options.name).randrange(20000, 30000)
    machines = [make_machine(options, number, port) for number in range(options.hosts)]
    return cloud.main(parser, options, machines, [f"jax[{options.cuda}]", *cloud.BUCKET_PACKAGES])


def make_machine(options, number: int, port: int) -> cloud.Machine:
    names = [options.name] if options.hosts == 1 else [f"{options.name}-{k}" for k in range(options.hosts)]
    name, compute = names[number], ["gcloud", "compute"]
    where = [f"--zone={options.zone}"] + ([f"--project={options.project}"] if options.project else [])
    create = [
        *(*compute, "instances", "create", name, *where, f"--machine-type={options.machine_type}"),
        *(f"--image-family={options.image_family}", f"--image-project={options.image_project}"),
        *(f"--boot-disk-size={options.disk}GB", "--maintenance-policy=TERMINATE", "--scopes=storage-rw"),
        "--metadata=install-nvidia-driver=True",
    ]
    if options.accelerator:
        create.append(f"--accelerator={options.accelerator}")
    if not options.on_demand:
        create += ["--provisioning-model=SPOT", "--instance-termination-action=DELETE"]
    environment = {}
    if options.hosts > 1:
        # Machines of one project find each other by name.
        environment["DREAM_JAX_COORDINATOR"] = f"{names[0]}:{port}"
        environment |= {"DREAM_JAX_PROCESSES": str(options.hosts), "DREAM_JAX_PROCESS": str(number)}
    start = [*compute, "instances", "start", name, *where]
    shell = [*compute, "ssh", name, *where]
    return cloud.Machine(
        name=name,
        create=create,
        describe=[*compute, "instances", "describe", name, *where, "--format=value(status)"],
        alive=("RUNNING",),
        revive={"TERMINATED": [start], "STOPPED": [start]},
        copy=[*compute, "scp", *where],
        shell=shell,
        shell_first=shell,
        delete=[*compute, "instances", "delete", name, *where, "--quiet"],
        environment=environment,
    )


if __name__ == "__main__":
    sys.exit(main())

"""Trains on a TPU of Google Cloud, one host or a slice of many:

    python launch/tpu_vm.py run --name my-run --zone us-east5-b --accelerator_type v6e-16 -- \\
        train --config configs/sr3_photos_4x.py --workdir runs/my-run --config.checkpoint.directory=gs://BUCKET/my-run

makes the TPU (a spot one, unless --on_demand), copies the files that git tracks, installs, starts the run on all hosts
and shows what the first one says. A run whose TPU was pre-empted goes on, on a new one, from its newest checkpoint in
the bucket. Ctrl-C leaves the run going: `follow` shows it again, `delete` deletes the TPU, and --delete does when the
run has ended. --dry_run prints the commands of gcloud instead.
"""

import argparse
import sys

import cloud


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cloud.add_options(parser)
    parser.add_argument("--accelerator_type", default="v6e-8")
    parser.add_argument(
        "--version", default="v2-alpha-tpuv6e", help="v5e: v2-alpha-tpuv5-lite; v4: tpu-ubuntu2204-base"
    )
    options = cloud.parse(parser)
    return cloud.main(parser, options, [make_machine(options)], ["jax[tpu]", *cloud.BUCKET_PACKAGES])


def make_machine(options) -> cloud.Machine:
    name, vm = options.name, ["gcloud", "compute", "tpus", "tpu-vm"]
    where = [f"--zone={options.zone}"] + ([f"--project={options.project}"] if options.project else [])
    kind = [
        f"--accelerator-type={options.accelerator_type}",
        "--scopes=https://www.googleapis.com/auth/devstorage.read_write",
    ]
    kind += [] if options.on_demand else ["--spot"]
    create = [*vm, "create", name, *where, f"--version={options.version}", *kind]
    delete = [*vm, "delete", name, *where, "--quiet"]
    again = [delete, create]
    return cloud.Machine(
        name=name,
        create=create,
        describe=[*vm, "describe", name, *where, "--format=value(state)"],
        alive=("READY",),
        revive={"PREEMPTED": again, "TERMINATED": again, "STOPPED": [[*vm, "start", name, *where]]},
        copy=[*vm, "scp", *where, "--worker=all"],
        shell=[*vm, "ssh", name, *where, "--worker=all"],
        shell_first=[*vm, "ssh", name, *where, "--worker=0"],
        delete=delete,
        # The hosts of a TPU know each other.
        environment={"DREAM_JAX_COORDINATOR": "auto"},
    )


if __name__ == "__main__":
    sys.exit(main())

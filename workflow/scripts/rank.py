"""One process of a training that several share: fairseq-train with its rank, as torchrun or srun has numbered it.

    torchrun --standalone --nproc-per-node 2 workflow/scripts/rank.py DATA --arch prefix_bart_large ...

fairseq would guess all this from the environment, differently in a batch job, and not at all without a GPU. Here it is
given the same way everywhere; without a GPU the processes meet over gloo.
"""

from __future__ import annotations

import os
import sys


def distributed_flags(environment: dict[str, str], gpus: int) -> list[str]:
    """What fairseq is to know of the process that has this environment, on a machine with this many GPUs.

    Raises:
        KeyError: neither torchrun nor srun has started it.
    """
    started_by_srun = "RANK" not in environment
    rank = environment["SLURM_PROCID" if started_by_srun else "RANK"]
    local_rank = environment["SLURM_LOCALID" if started_by_srun else "LOCAL_RANK"]
    world_size = environment["SLURM_NTASKS" if started_by_srun else "WORLD_SIZE"]
    meeting = f"tcp://{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    flags = ["--distributed-world-size", world_size, "--distributed-rank", rank, "--distributed-init-method", meeting]
    flags += ["--distributed-no-spawn"]
    if gpus:
        # A batch system may show each process a GPU of its own, and then calls it the first.
        return [*flags, "--device-id", str(int(local_rank) % gpus)]
    return [*flags, "--cpu", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]


def main() -> None:
    import torch
    from fairseq_cli.train import cli_main

    sys.argv += distributed_flags(dict(os.environ), torch.cuda.device_count())
    cli_main()


if __name__ == "__main__":
    main()

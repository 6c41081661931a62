"""A training that several processes share: how they are started (`launcher`), and what each is told (as a program).

    torchrun --standalone --nproc-per-node 2 workflow/scripts/rank.py DATA --arch prefix_bart_large ...

is fairseq-train with the ranks that torchrun or srun have given out. fairseq would guess them from the environment,
differently in a batch job, and not at all without a GPU; there the processes meet over gloo.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys

from common import UserError
from fairseq_command import grace_seconds
from signal_handlers import is_ignored

HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)  # by torchrun


def launcher(gpus: int, nodes: int) -> list[str] | None:
    """The command that starts one process on each GPU; None for one process.

    On one machine it is torchrun. Across the nodes of a Slurm job it is srun, whose processes meet here, on its first
    node: the job is to have one task for each process.

    Raises:
        UserError: there is no Slurm job.
    """
    if gpus * nodes == 1:
        return None
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or 1) // (gpus if nodes == 1 else 1))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if nodes == 1:
        # By default torchrun ends at SIGUSR1 and leaves its processes behind, heeds signals that its parent ignores,
        # and gives the processes half a minute to save.
        heeded = [number.name for number in HANDED_ON if not is_ignored(number)]
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(heeded)
        options = ["--standalone", f"--nproc-per-node={gpus}", f"--shutdown-timeout={grace_seconds()}"]
        return [sys.executable, "-m", "torch.distributed.run", *options, __file__]
    if "SLURM_JOB_ID" not in os.environ or not shutil.which("srun"):
        raise UserError(f"--nodes {nodes}: this is no Slurm job, and only its nodes can be used together")
    with socket.create_server(("", 0)) as free:
        os.environ |= {"MASTER_ADDR": socket.gethostname(), "MASTER_PORT": str(free.getsockname()[1])}
    tasks = [f"--nodes={nodes}", f"--ntasks={gpus * nodes}", f"--ntasks-per-node={gpus}", f"--cpus-per-task={threads}"]
    return ["srun", *tasks, "--kill-on-bad-exit=1", "--export=ALL", sys.executable, __file__]


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

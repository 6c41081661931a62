"""A real Slurm with two nodes on this machine, for the time of one command, and nothing of it anywhere else.

The command runs in namespaces of its own: processes, mounts, network (loopback alone) and host name. Slurm's and
munge's files lie in a temporary folder; /etc/slurm and munge's socket are mounted over and look as before from outside.
When the command ends, the daemons and all jobs end with its process namespace, however it ended; their cgroups are
removed then, or by the next command.

Each node is a daemon in namespaces of its own, too, and may be given more cores and memory than this machine has; the
GPUs are made up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged", "setpriv", "unshare")
NODES = ("node1", "node2")
NODE = "CPUs=16 RealMemory=100000 Gres=gpu:2"
INSIDE = "PREFIX_IN_NAMESPACE"  # set where the namespaces are entered
# Slurm looks for addresses as programs on a network do, which find none where there is only the loopback's own.
ADDRESS = "10.99.0.1"
CGROUPS = Path("/sys/fs/cgroup/freezer")

CONFIGURATION = """
ClusterName=test
SlurmctldHost=login({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType={tracking}
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
EnforcePartLimits=ALL
SchedulerParameters=batch_sched_delay=0,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
MinJobAge=3600
KillWait=30
SlurmdTimeout=20
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES DefaultTime=60 MaxTime=INFINITE State=UP
"""

CGROUP_CONFIGURATION = """
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
"""


class Unavailable(Exception):
    """Slurm cannot run here; one sentence says why."""


# Outside --------------------------------------------------------------------------------------------------------------


def install() -> None:
    """Install what is missing, where the system's package manager is apt and this is root.

    Raises:
        Unavailable: something is missing that cannot be installed.
    """
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Unavailable(f"{', '.join(missing)} not found, and only root can install them, with apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        result = subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, text=True)
        if result.returncode != 0:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise Unavailable(f"apt-get {command[0]} failed: {reason}")


def run_inside(argv: list[str]) -> int:
    """Run this command again in namespaces of its own; returns its exit status.

    Raises:
        Unavailable: this machine does not let this user have namespaces.
    """
    unshare = ["setpriv", "--pdeathsig", "KILL", "unshare", "--kill-child"]  # whatever ends this, ends all in there
    unshare += ["--mount", "--pid", "--fork", "--mount-proc", "--net", "--uts", "--ipc"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        raise Unavailable("this machine does not let this user have namespaces of its own (unshare failed)")
    try:
        return subprocess.run([*unshare, sys.executable, *argv], env={**os.environ, INSIDE: "1"}).returncode
    finally:
        _remove_cgroups()


def is_inside() -> bool:
    return INSIDE in os.environ


# Inside ---------------------------------------------------------------------------------------------------------------


def start(folder: Path) -> dict[str, subprocess.Popen]:
    """Bring up munge, the controller and both nodes, which are returned; their files and logs go to the folder.

    Raises:
        Unavailable: a daemon did not come up; with the end of its log.
    """
    _bring_up_network()
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{ADDRESS} login {' '.join(NODES)}\n")
    subprocess.run(["hostname", "login"], check=True)
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    for path in ("/etc/slurm", "/run/munge"):
        Path(path).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True)
        os.chmod(path, 0o755)
    _configure(folder)
    _start_munge(folder)
    subprocess.run(["slurmctld"], check=True)
    nodes = {node: start_node(folder, node) for node in NODES}
    wait_until("both nodes are idle", lambda: states() == dict.fromkeys(NODES, "idle"), folder / "slurmctld.log")
    return nodes


def start_node(folder: Path, node: str) -> subprocess.Popen:
    """A node: the daemon in namespaces of its own, with its own host name; killing the process is a power cut."""
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
    with open(folder / f"{node}.out", "ab") as output:
        return subprocess.Popen(
            [*unshare, "sh", "-c", f"hostname {node} && exec slurmd -D -N {node}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def wait_until(what: str, condition, log: Path | None = None, seconds: float = 60) -> None:
    """Look again and again until the condition holds.

    Raises:
        Unavailable: it did not come to hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            end = " / ".join(log.read_text(errors="replace").splitlines()[-3:]) if log and log.exists() else ""
            raise Unavailable(f"waited {seconds:.0f} s in vain until {what}{f' (the log ends: {end})' if end else ''}")
        time.sleep(0.2)


def _bring_up_network() -> None:
    """The loopback interface, with a second address."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running
        address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(ADDRESS))
        fcntl.ioctl(any_socket, 0x8916, address)  # SIOCSIFADDR


def _configure(folder: Path) -> None:
    nodes = [
        f"NodeName={node} NodeHostname={node} NodeAddr={ADDRESS} Port={17001 + number} {NODE} State=UNKNOWN"
        for number, node in enumerate(NODES)
    ]
    text = CONFIGURATION.format(folder=folder, address=ADDRESS, nodes="\n".join(nodes), tracking=_tracking())
    Path("/etc/slurm/slurm.conf").write_text(text.lstrip())
    Path("/etc/slurm/cgroup.conf").write_text(CGROUP_CONFIGURATION.lstrip())
    gpus = [f"NodeName={node} Name=gpu File={device}" for node in NODES for device in ("/dev/null", "/dev/zero")]
    Path("/etc/slurm/gres.conf").write_text("\n".join(["AutoDetect=off", *gpus]) + "\n")
    for name in ("state", *NODES):
        (folder / name).mkdir()


def _tracking() -> str:
    """By cgroups, as on most clusters: what is to end a job is told to what its steps have started, and nobody else.

    Where there are none to be had, all processes are told.
    """
    _remove_cgroups()  # of a test that was killed
    free = os.access(CGROUPS, os.W_OK) and not any(CGROUPS.glob("slurm_*"))  # no other Slurm, or test
    return "proctrack/cgroup" if free else "proctrack/linuxproc"


def _remove_cgroups() -> None:
    """Those of the nodes, once they are without processes."""
    for node in NODES:
        for folder, *_ in os.walk(CGROUPS / f"slurm_{node}", topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def _start_munge(folder: Path) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {"key-file": key, "log-file": folder / "munged.log", "pid-file": folder / "munged.pid"}
    options = [f"--{name}={path}" for name, path in {**files, "seed-file": folder / "munged.seed"}.items()]
    subprocess.run(["munged", "--force", *options], check=True, capture_output=True)


def states() -> dict[str, str]:
    """What the controller takes each node for."""
    result = subprocess.run(["sinfo", "-hN", "-o", "%N %t"], capture_output=True, text=True)
    return dict(line.split() for line in result.stdout.splitlines())

"""A throw-away, real SLURM on this machine: munged, slurmctld and a slurmd a node, with fake GPUs (/dev/null).

Without systemd, cgroups and accounting: cores and memory are scheduled, not enforced. Everything that is started is
stopped by its process id. What each unusual line of slurm.conf is for:
- cred_expire is also how long a requeued job waits before it may start again (120 s by default).
- config_overrides lets a node claim more cores than the machine has.
- TmpFS and SlurmdSpoolDir must differ between nodes that share a machine.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "sinfo")
CORES, GPUS = 64, 4
CONF = """
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock,cred_expire=6
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
TmpFS={root}/tmp.%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
EnforcePartLimits=ALL
JobRequeue=1
MinJobAge=3600
KillWait=5
SlurmdTimeout=10
MessageTimeout=10
UnkillableStepTimeout=20
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName={nodes} NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cores} RealMemory={memory} \
Gres=gpu:{gpus} State=UNKNOWN
PartitionName=compute Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """What keeps SLURM from being started here; "" where it can be."""
    missing = [name for name in NEEDED if not shutil.which(name, path=_path())]
    return f"no {', '.join(missing)}: run tests/cluster/install.sh as root" if missing else ""


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    def __init__(self, root: Path, *, nodes: int = 3):
        self.root, self.nodes = root, [f"n{number + 1}" for number in range(nodes)]
        self.conf = root / "slurm.conf"
        self.env = {**os.environ, "SLURM_CONF": str(self.conf), "PATH": _path()}
        for name in [name for name in self.env if name.startswith(("SLURM_", "SBATCH_", "PMI", "CLOUDJOB_"))]:
            if name != "SLURM_CONF":
                del self.env[name]

    def call(
        self, *command, check: bool = True, env=None, cwd=None, timeout: float = 60
    ) -> subprocess.CompletedProcess:
        """A command that sees this cluster."""
        done = subprocess.run(
            [str(part) for part in command],
            env={**self.env, **(env or {})},
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    # --- its life ----------------------------------------------------------------------------------------------
    def start(self) -> None:
        for name in ("state", "log", "run", *(f"{kind}.{node}" for kind in ("spool", "tmp") for node in self.nodes)):
            (self.root / name).mkdir(parents=True)
        self.root.chmod(0o755)
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for number in range(GPUS):
            (self.root / f"gpu{number}").symlink_to("/dev/null")
        nodes = f"n[1-{len(self.nodes)}]"
        (self.root / "gres.conf").write_text(f"NodeName={nodes} Name=gpu File={self.root}/gpu[0-{GPUS - 1}]\n")
        port = _free_ports(len(self.nodes) + 1)
        facts = {
            "host": socket.gethostname().partition(".")[0],
            "user": os.environ.get("USER") or subprocess.check_output(["id", "-un"], text=True).strip(),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
            "first": port + 1,
            "last": port + len(self.nodes),
        }
        text = CONF.format(root=self.root, port=port, nodes=nodes, cores=CORES, gpus=GPUS, **facts)
        self.conf.write_text(text)
        run, log = self.root / "run", self.root / "log"
        self.call(
            *("munged", "--force", "--num-threads=2", f"--key-file={key}", f"--socket={run}/munge.sock"),
            *(f"--pid-file={run}/munged.pid", f"--log-file={log}/munged.log", f"--seed-file={run}/munge.seed"),
        )
        self.call("slurmctld", "-c", "-f", self.conf)
        for node in self.nodes:
            self.start_node(node)
        self.wait_for(lambda: self.idle() == self.nodes, "all nodes to be idle", timeout=120)

    def start_node(self, node: str) -> None:
        self.call("slurmd", "-N", node, "-f", self.conf)

    def idle(self) -> list[str]:
        lines = self.call("sinfo", "-hN", "-o", "%N %T", check=False).stdout.splitlines()
        return sorted(line.split()[0] for line in lines if line.endswith(" idle"))

    def stop(self) -> None:
        """Jobs first: slurmstepd outlives its slurmd. What is left at the end has lost its cluster, and is killed."""
        self.call("scancel", "--full", "-u", self.env.get("USER", "root"), check=False)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.call("squeue", "-h", check=False).stdout.strip():
            time.sleep(0.2)
        for group in (self.nodes, ["slurmctld"], ["munged"]):
            pids = [pid for name in group if (pid := self._daemon(name))]
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            for pid in pids:
                deadline = time.monotonic() + 10
                while self._mine(pid):
                    if time.monotonic() > deadline:
                        os.kill(pid, signal.SIGKILL)
                    time.sleep(0.1)
        self._kill(self._tasks())

    def _daemon(self, name: str) -> int | None:
        """The process of a pid file, if it is one of this cluster: after a crash the number may be somebody else's."""
        try:
            pid = int((self.root / "run" / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if self._mine(pid) else None

    def _mine(self, pid: int) -> bool:
        return str(self.root).encode() in _read(f"/proc/{pid}/cmdline")

    def crash(self, node: str) -> None:
        """What a node that dies looks like: its slurmd, its slurmstepds and all of its tasks are killed at once.
        A killed slurmd alone would be none: the steps live on and the job ends well."""
        self._kill({self._daemon(node)} - {None} | self._tasks(f"SLURMD_NODENAME={node}".encode()))

    def _tasks(self, *also: bytes) -> set[int]:
        """The processes of jobs of this cluster (with this in their environment too), and their slurmstepds."""
        found = set()
        wanted = {f"SLURM_CONF={self.conf}".encode(), *also}
        for entry in Path("/proc").glob("[0-9]*"):
            environment = _read(entry / "environ").split(b"\0")
            if wanted <= set(environment) and any(part.startswith(b"SLURM_JOB_ID=") for part in environment):
                found.add(int(entry.name))
                parent = int((_read(entry / "stat").rpartition(b")")[2].split() or [0, 0])[1])
                if b"slurmstepd" in _read(f"/proc/{parent}/cmdline"):
                    found.add(parent)
        return found

    def _kill(self, pids: set[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # --- jobs --------------------------------------------------------------------------------------------------
    def state(self, job: str) -> str:
        """RUNNING, COMPLETED, ...; of an array that of its tasks, each once."""
        lines = self.call("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T", check=False).stdout.split()
        return " ".join(sorted(set(lines)))

    def wait(self, *jobs: str, timeout: float = 1200) -> list[str]:
        """The states in which these jobs (and all tasks of arrays) end."""
        active = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")

        def ended() -> bool:
            states = [self.state(job) for job in jobs]
            return all(state and not any(word in state for word in active) for state in states)

        self.wait_for(ended, f"jobs {jobs} to end", timeout=timeout)
        return [self.state(job) for job in jobs]

    def restarts(self, job: str) -> int:
        facts = self.call("scontrol", "show", "job", "-o", job).stdout
        return int(facts.partition("Restarts=")[2].split()[0])

    def queue(self) -> str:
        return self.call("squeue", "-l", "-t", "all", check=False).stdout

    def wait_for(self, condition, what: str, *, timeout: float = 600) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout} s for {what}\n{self.queue()}"
            time.sleep(0.3)


def _free_ports(number: int) -> int:
    """The first of so many free ports in a row; at random, for two clusters may start at once."""
    for first in random.sample(range(20000, 32000, number), 100):
        sockets = [socket.socket() for _ in range(number)]
        try:
            for offset, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise RuntimeError("no free ports")


def _read(path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""

"""A SLURM for tests of what is submitted, where there is none: `sbatch` refuses what a real one would (a script that is
not there, options and #SBATCH lines that it cannot read), then rehearses the job.

The script runs as in a job: from a spool folder, with SLURM's variables, each array by its first task. `cloudjob` says
there what it would do (--dry-run), so that what a script hands on is read by who reads it in earnest. What was
submitted stands in `submitted.txt` of the folder, a line a job; a job that fails is refused with its log.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from subprocess import PIPE, STDOUT

NUMBER, COUNT = r"\d+", r"[1-9]\d*"
WORD = r"[\w.:,/@+-]+"
OPTIONS = {
    "account": WORD,
    "array": rf"{NUMBER}(-{NUMBER}(:{COUNT})?)?(,{NUMBER}(-{NUMBER}(:{COUNT})?)?)*(%{COUNT})?",
    "constraint": WORD,
    "cpus-per-task": COUNT,
    "dependency": rf"(after\w*(:{NUMBER})+)(,after\w*(:{NUMBER})+)*",
    "gpus-per-node": rf"([\w-]+:)?{COUNT}",
    "gres": rf"none|gpu(:[\w-]+)?:{COUNT}",
    "job-name": WORD,
    "kill-on-invalid-dep": "yes|no",
    "mem": rf"{NUMBER}[KMGT]?",
    "mem-per-cpu": rf"{COUNT}[KMGT]?",
    "mem-per-gpu": rf"{COUNT}[KMGT]?",
    "nodes": rf"{COUNT}(-{COUNT})?",
    "ntasks": COUNT,
    "ntasks-per-node": COUNT,
    "open-mode": "append|truncate",
    "output": r"[^\s]+",
    "partition": WORD,
    "qos": WORD,
    "signal": rf"(B:)?[A-Z]+[12]?(@{COUNT})?",
    "time": rf"{COUNT}|({NUMBER}-)?\d+:\d\d(:\d\d)?",
}
FLAGS = ("exclusive", "parsable", "requeue", "no-requeue")
PROGRAMS = {
    "sbatch": f'exec {shlex.quote(sys.executable)} -S {shlex.quote(__file__)} "$@"',
    "srun": '[ "$1" = --mpi=list ] && { echo "specific pmix plugin versions available: none, pmi2"; exit; }\n'
    'while :; do case $1 in --mpi=*|--wait=*|--kill-on-bad-exit=*) shift ;; *) exec "$@" ;; esac; done',
    "scontrol": 'case "$1 $2" in\n'
    '"show config") echo "MaxArraySize            = 1001" ;;\n'
    '"show node") echo "   NodeAddr=127.0.0.1 NodeHostName=$3" ;;\n'
    '*) echo "JobId=$4 EndTime=2099-01-01T00:00:00 StdOut=$PWD/job-$4.out NodeList=here" ;;\nesac',
}
STAGES_ALONE = 'case "${REHEARSAL:-}:$1" in :*|*:doctor|*:items) ;; *) set -- "$@" --dry-run ;; esac'


def install(programs: Path, cloudjob: Sequence[str]) -> None:
    """Writes `sbatch`, `srun`, `scontrol`, and a `cloudjob` that only says in a job what it would do."""
    for name, text in (PROGRAMS | {"cloudjob": f'{STAGES_ALONE}\nexec {shlex.join(cloudjob)} "$@"'}).items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)


def _matching(pattern: str):
    def read(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise argparse.ArgumentTypeError(f"invalid value {value!r}")
        return value

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sbatch", allow_abbrev=False, add_help=False)
    for name, pattern in OPTIONS.items():
        parser.add_argument(f"--{name}", type=_matching(pattern))
    for name in FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    return parser


def _directives(script: Path) -> list[str]:
    """The options of its #SBATCH lines, of which there are none after the first command."""
    found: list[str] = []
    head, *lines = script.read_text(encoding="utf-8").splitlines()
    if not head.startswith("#!"):
        sys.exit(f"sbatch: error: {script}: this does not look like a batch script, it begins without #!")
    for line in lines:
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            found += shlex.split(line.removeprefix("#SBATCH"), comments=True)
    return found


def _variables(job: argparse.Namespace, number: str, name: str) -> dict[str, str]:
    """What SLURM tells the one task of a job that is rehearsed."""
    told = {
        "REHEARSAL": "1",
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NAME": name,
        "SLURM_JOB_NODELIST": "here",
        "SLURMD_NODENAME": "here",
    }
    told |= {"SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": job.cpus_per_task or "1", "SLURM_SUBMIT_DIR": os.getcwd()}
    gpus = job.gpus_per_node or (job.gres or "none").removeprefix("gpu:")
    if gpus != "none":
        told["SLURM_GPUS_ON_NODE"] = gpus.rpartition(":")[2]
    if job.array:
        first = re.split("[-,%:]", job.array)[0]
        told |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": first, "SLURM_ARRAY_TASK_MIN": first}
    return told


def main(words: list[str]) -> int:
    """The command line of sbatch: options, the script, and its arguments."""
    parser = _parser()
    at = next((place for place, word in enumerate(words) if not word.startswith("-")), len(words))
    if at == len(words) or not os.access(words[at], os.R_OK):
        sys.exit(f"sbatch: error: Unable to open file {(words[at:] or ['-'])[0]}")
    script = Path(words[at])
    job = parser.parse_args([*_directives(script), *words[:at]])
    with open("submitted.txt", "a+", encoding="utf-8") as journal:
        journal.seek(0)
        number = str(101 + len(journal.readlines()))
        journal.write(f"{shlex.join(words)}\n")
    with tempfile.TemporaryDirectory() as spool:
        copy = Path(spool) / "slurm_script"
        copy.write_bytes(script.read_bytes())
        environment = os.environ | _variables(job, number, job.job_name or script.name)
        done = subprocess.run(
            ["bash", copy, *words[at + 1 :]], env=environment, stdout=PIPE, stderr=STDOUT, check=False
        )
    Path(f"job-{number}.out").write_bytes(done.stdout)
    if done.returncode:
        print(done.stdout.decode(), f"sbatch: error: the job would end with {done.returncode}", file=sys.stderr)
        return 1
    print(number if job.parsable else f"Submitted batch job {number}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

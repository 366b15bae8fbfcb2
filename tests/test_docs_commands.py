"""Each command of the documentation is shown to work in one of the ways listed here; one without a way fails.

- It runs, page by page, in test_docs.py and test_docs_outputs.py. `sbatch` and `slurm/*.sh` rehearse there what they
  submit (rehearsal.py), and tests/cluster runs all scripts on a real SLURM.
- It is marked as not run in the page, and stands in one of the tables below.
Besides, each command line of cloudjob, in the text too, is one that its parser takes, with keys that there are.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, blocks
from front_door import CONFIG, call
from rehearsal import install
from test_docs import keys_module

from cloudjob.cli.parser import Parser
from cloudjob.config.models import Config
from cloudjob.config.source import load

RUNS = {"cloudjob", "sbatch", "mpiexec", "cp", "export", "newest=$(ls"}  # and slurm/*.sh: what a page's reader runs
# Another test does the same; in that file stand these words of it.
BY_TEST = {
    "containers/build.sh cloudjob.sif": ("cluster/conftest.py", '"containers" / "build.sh", image'),
    "export CLOUDJOB_IMAGE=$PWD/cloudjob.sif": ("cluster/conftest.py", 'self.env["CLOUDJOB_IMAGE"]'),
    "scancel --batch --signal=USR1 JOB": ("cluster/test_jobs.py", '"scancel", "--batch", "--signal=USR1", job'),
    "scancel JOB": ("cluster/test_jobs.py", '"scancel", job'),
    "pip install '.[mpi]'": ("dist.sh", "-m pip install"),
    "pip install '.[mpi,s3]'": ("dist.sh", "-m pip install"),
    "cloudjob bench read --json": ("benches/test_bench_read.py", "read.run("),
    "cloudjob bench download": ("benches/test_bench_download.py", "download.run("),
    "cloudjob import sen12mscr FOLDER --out runs/sen12mscr": ("cli/test_public.py", '"import", "sen12mscr", data'),
    "cloudjob train runs/sen12mscr": ("cli/test_public.py", 'good("train", start)'),
    "cloudjob evaluate runs/sen12mscr --set evaluate.triplets=8000": ("cli/test_public.py", '"evaluate", start'),
    "cloudjob train configs/north_slope.yaml --init-from runs/sen12mscr/train/checkpoints/step-NNNNNNNN.pt": (
        "cli/test_public.py",
        '"--init-from", weights',
    ),
    "export CDSE_TOTP_SECRET=...": ("copernicus/test_account.py", '"CDSE_TOTP_SECRET", SECRET'),
    "cloudjob run alps.yaml --until review": ("../docs/real-scenes.md", "configs/north_slope.yaml --until review"),
    "torchrun --standalone --nproc-per-node 4 --no-python cloudjob train runs/north_slope": (
        "small_runs.py",
        '"torch.distributed.run", "--standalone", "--no-python"',
    ),
}
# They take hours, and are asked what they would do. So are those of make.
BY_DRY_RUN = {
    "cloudjob run configs/benchmark.yaml",
    "CLOUDJOB_REAL=FOLDER cloudjob compare configs/real.yaml",
    "cloudjob compare configs/comparison.yaml",
    "cloudjob compare configs/comparison.yaml --only base",
    "cloudjob compare configs/ablation.yaml",
    "cloudjob compare configs/comparison-gpu.yaml",
}
BY_MAKE = {"make setup", "make demo", ". .venv/bin/activate"}
# They need what no test has: the text before them says so.
BY_NOBODY = {
    "gdalinfo <product>.tif",
    "gdalinfo <product>.h5",
    'gdalinfo HDF5:"<product>.h5"://reflectance',
    "python docs/figures/restored.py WORLDCEREAL_L2A runs/demo",
    "import numpy, rasterio",
}
STANDS_FOR = {"PRESET": "small", "I": "0", "STAGE": "train", "KIND": "sen12mscr", "$newest": "step-8.pt"}
INLINE = re.compile(r"`(?:\.venv/bin/)?(cloudjob [^`]+)`", re.DOTALL)


def plain(command: str) -> str:
    """Without the comment behind it, and what is spaced out before that."""
    return " ".join(re.sub(r"\s#.*", "", command).split())


def marked() -> list[tuple[str, str]]:
    """(page, command) of all blocks that are marked as not run; of Python the first line."""
    marks = [block for page in PAGES for block in blocks(page) if block.reason]
    ends = {"sh": None, "python": 1}
    return [(block.place, plain(line)) for block in marks for line in block.commands[: ends[block.language]]]


def command_lines() -> list[tuple[str, list[str]]]:
    """(page, words behind `cloudjob`) of all blocks and of the text."""
    found = []
    for page, path in PAGES.items():
        shell = [line for block in blocks(page) if block.language == "sh" for line in block.commands]
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for line in [*shell, *INLINE.findall(text)]:
            words = shlex.split(line.partition(" > ")[0], comments=True)
            if "cloudjob" in words:
                rest = words[words.index("cloudjob") + 1 :]
                found.append((page, [STANDS_FOR.get(word, word) for word in rest]))
    return found


def test_each_command_has_a_way_in_which_it_is_shown_to_work():
    ways = (*BY_TEST, *BY_DRY_RUN, *BY_MAKE, *BY_NOBODY)
    assert len(set(ways)) == len(ways)
    found = marked()
    assert [each for each in found if each[1] not in ways] == []
    assert set(ways) == {command for _, command in found}, "a way of a command that no page has"
    for page in PAGES:
        lines = [line for block in blocks(page) if block.runs and block.language == "sh" for line in block.commands]
        for first in (line.split()[0] for line in lines):
            assert first in RUNS or re.fullmatch(r"slurm/\w+\.sh", first), f"{page}: who runs {first}?"
    for command, (file, words) in BY_TEST.items():
        assert words in (ROOT / "tests" / file).read_text(encoding="utf-8"), command


def test_what_nobody_runs_says_so():
    for page, path in PAGES.items():
        text = path.read_text(encoding="utf-8")
        for block in blocks(page):
            if block.reason and {plain(line) for line in block.commands} & BY_NOBODY:
                assert "no test runs" in text[: text.index(block.code)].rpartition("\n#")[2], block.place


@pytest.mark.parametrize("command", sorted(BY_DRY_RUN))
def test_what_takes_hours_says_what_it_would_do(command, tmp_path):
    settings, _, rest = command.rpartition("cloudjob ")
    name, path, *more = rest.split()
    real = {"CLOUDJOB_REAL": str(tmp_path)} if settings else {}
    done = call(name, ROOT / path, *more, "--run-dir", tmp_path / "run", "--dry-run", env=real)
    assert done.returncode == 0, done.stderr
    assert "missing" in done.stdout
    assert not (tmp_path / "run").exists()


def test_make_has_what_the_pages_name(tmp_path):
    lines = [command for _, command in marked()] + (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    lines += [each for path in PAGES.values() for each in re.findall(r"`(make [^`]*)`", path.read_text())]
    targets = {line.split()[1] for line in lines if line.strip().startswith("make ")}
    assert {"setup", "demo", "docs", "quick"} <= targets
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "-m venv .venv" in (ROOT / "Makefile").read_text(), "what `. .venv/bin/activate` needs"
    demo = re.search(r"cloudjob (run \S+ --run-dir \S+)$", done.stdout, re.M)[1]
    assert f"cloudjob {demo}" in PAGES["getting-started.md"].read_text()
    _, config, *_ = demo.split()
    said = call("run", ROOT / config, "--run-dir", tmp_path / "demo", "--dry-run")
    assert said.returncode == 0, said.stderr
    assert "would run" in said.stdout


def test_the_extras_that_the_pages_install_are_there():
    named = {
        extra
        for path in PAGES.values()
        for each in re.findall(r"pip install '[^'\[]*\[([^\]]+)\]'", path.read_text())
        for extra in each.split(",")
    }
    known = re.findall(
        r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2], re.M
    )
    assert named
    assert named <= set(known)


def test_the_program_takes_each_command_line_of_the_pages(capsys):
    parser = Parser().root
    commands = next(action for action in parser._actions if action.dest == "command").choices
    whole = 0
    for page, words in command_lines():
        told = f"{page}: cloudjob {' '.join(words)}"
        if not words[0].startswith("-"):
            assert words[0] in commands, told
            options = [word for word in words[1:] if word.startswith("--")]
            assert set(options) <= set(commands[words[0]]._option_string_actions), told
        if len(words) > 2 and "..." not in words and "--mask" not in words[1:2]:
            try:
                parser.read(words)
            except SystemExit:
                pytest.fail(f"{told}\n{capsys.readouterr().err}")
            whole += 1
        overrides = [words[place + 1] for place, word in enumerate(words[:-1]) if word == "--set"]
        load(CONFIG, [each.replace("PATH", str(CONFIG)) for each in overrides])
    assert whole > 40


def test_the_files_that_command_lines_name_are_there():
    named = {word for _, words in command_lines() for word in words if word.startswith("configs/")}
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_each_key_that_a_page_names_is_one_of_the_configuration():
    keys, schema = keys_module(), Config.model_json_schema()
    known = {
        f"{path}.{name}".replace("[]", "").lstrip(".")
        for path, at in keys.walk(schema, schema)
        for name in at["properties"]
    }
    sections = {name.split(".")[0] for name in known if "." in name}
    named = re.compile(rf"`({'|'.join(sorted(sections))})\.([a-z_0-9.]+)[`:= ]")
    wrong = []
    for page, path in PAGES.items():
        for section, rest in named.findall(path.read_text(encoding="utf-8")):
            key = f"{section}.{rest}".rstrip(".")
            if key not in known and Path(key).suffix not in (".sh", ".h5", ".json", ".jsonl", ".yaml", ".py", ".tif"):
                wrong.append(f"{page}: {key}")
    assert wrong == []


# --- the rehearsal -----------------------------------------------------------------------------------------------
@pytest.fixture
def login(tmp_path):
    """A function that submits as on a login node: (sbatch's arguments) -> what comes of it."""
    (tmp_path / "bin").mkdir()
    install(tmp_path / "bin", (sys.executable, "-m", "cloudjob"))
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "CLOUDJOB_"))}
    environment["PATH"] = f"{tmp_path}/bin:{os.environ['PATH']}"

    def submit(*words: str) -> subprocess.CompletedProcess:
        command = ["sbatch", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return submit


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["slurm/nowhere.sh"], "Unable to open file slurm/nowhere.sh"),
        (["--tiem=1", "slurm/fetch.sh"], "--tiem=1"),
        (["--array=0-", "slurm/infer.sh", "configs/test.yaml"], "invalid value '0-'"),
        (["slurm/train.sh", "configs/nowhere.yaml"], "configs/nowhere.yaml: no such file or run folder"),
        (["slurm/train.sh", "--nodes=2", "configs/test.yaml", "--set", "train.lrr=1"], "did you mean"),
        (["slurm/fetch.sh", "configs/test.yaml", "--sett", "seed=1"], "did you mean --set?"),
        (["--gres=none", "slurm/train.sh", "configs/test.yaml"], "no GPU was given to this job"),
        (["wrong.sh"], "invalid value '1x'"),
    ],
)
def test_a_rehearsal_refuses_what_could_not_run(login, tmp_path, words, said):
    (tmp_path / "wrong.sh").write_text("#!/bin/bash\n#SBATCH --nodes=1x\ntrue\n")
    done = login(*words)
    assert done.returncode != 0
    assert said in done.stderr


def test_a_rehearsal_hands_on_what_the_script_was_given(login, tmp_path):
    done = login("--parsable", "slurm/fetch.sh", "configs/test.yaml", "search", "--set", "seed=7")
    assert (done.returncode, done.stdout) == (0, "101\n"), done.stderr
    assert "would run" in (tmp_path / "job-101.out").read_text()
    assert not (tmp_path / "runs" / "test" / "scenes.jsonl").exists()

"""The documentation: every command of it runs, every link leads somewhere, every configuration key is described.

The embedded archive stands in for the Data Space, and an sbatch that rehearses its jobs (rehearsal.py) for SLURM: what
the scripts do there is tested in tests/slurm and tests/cluster.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from doc_pages import DOCS, PAGES, ROOT, Reader, blocks
from front_door import CONFIG
from own_images import UTM, clouded, ground, write
from untrained import untrained

import cloudjob
from cloudjob.archive.server import ArchiveServer
from cloudjob.config.models import Config

# docs/how-good.md has benchmarks of hours; test_docs_outputs.py follows docs/outputs.md over scenes of three dates.
ELSEWHERE = {"how-good.md", "outputs.md"}
COMMAND = re.compile(r"^    (cloudjob|slurm/|sbatch|make|pip|python|export|mpiexec|import|from) ?", re.MULTILINE)
SCRIPTS = {path.stem for path in (ROOT / "slurm").glob("*.sh")} - {"common"}
RUN = [name for name in PAGES if name not in ELSEWHERE and any(block.runs for block in blocks(name))]
ADDRESSES = {
    "stac": "/v1",
    "catalogue": "/odata/v1",
    "download": "/odata/v1",
    "token": "/auth/realms/CDSE/protocol/openid-connect/token",
}


@pytest.fixture(scope="module")
def data_space(finished):
    """The embedded archive as a service of its own, in place of the Data Space."""
    with ArchiveServer(finished / "archive") as running:
        yield running


@pytest.fixture
def place(tmp_path, finished, data_space) -> Path:
    """The clone as its user sees it after `make demo`, with small runs below the names of the documentation."""
    for name in ("slurm", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    settings = yaml.safe_load(CONFIG.read_text())
    of_service = {name: part for name, part in settings.items() if name != "archive"}
    of_service["copernicus"] = {key: data_space.url + path for key, path in ADDRESSES.items()}
    for name, written in (("demo", settings), ("north_slope", of_service)):
        shutil.copytree(finished, tmp_path / "runs" / name)
        (tmp_path / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(written))
    return tmp_path


@pytest.fixture
def images(place) -> dict[str, object]:
    """Images of one's own, and the checkpoint that the pages name; what the Python of a page takes for given."""
    clear = ground()
    image, where = clouded(clear)
    for name, bands in (("my", image), ("my_2024-05-10", image), ("my_2024-05-05", clear), ("my_2024-05-20", clear)):
        write(place / f"{name}.tif", bands, **UTM)
    write(place / "my_mask.tif", where[None].astype(np.uint8), names=None, **UTM)
    os.replace(untrained(place), place / "step-00030000.pt")
    return {"image": image, "mask": where, "may_5": clear, "may_20": clear}


def decided(place: Path) -> None:
    """As if a person had looked at the review page, and the browser had saved what she decided."""
    rows = [json.loads(line) for line in (place / "runs/north_slope/pairs.jsonl").read_text().splitlines()]
    pair = next(row for row in rows if row["accepted"])
    (place / "Downloads").mkdir()
    text = f"pair,decision,reason,reviewer,version\n{pair['pair']},accept,,somebody,{pair['version']}\n"
    (place / "Downloads" / "decisions.csv").write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(place, images, page, monkeypatch):
    monkeypatch.chdir(place)
    decided(place)
    reader = Reader(place, **images)
    reader.env |= {"CDSE_USERNAME": "me", "CDSE_PASSWORD": "secret"}
    reader.follow(page)
    if page == "cluster.md":
        jobs = [path.read_text() for path in place.glob("job-*.out")]
        assert {re.match(r"--- cloudjob-(\w+) ", job)[1] for job in jobs} == SCRIPTS - {"pipeline"}
        assert all(job.endswith(" s\n") and "ended with 0 after" in job for job in jobs)


def test_all_code_stands_between_fences_and_what_is_not_run_says_why():
    for name in PAGES:
        text = re.sub(r"^```.*?^```$", "", PAGES[name].read_text(), flags=re.DOTALL | re.MULTILINE)
        assert not COMMAND.search(text), f"{name}: a command without fences, which no test runs"
    known = {"sh", "python", "yaml", "text", ""}
    found = [block for name in PAGES for block in blocks(name)]
    assert {block.language for block in found} <= known
    assert all(len(block.reason) > 10 for block in found if block.reason is not None)
    comments = sum(PAGES[name].read_text().count("<!-- not run") for name in PAGES)
    assert comments == sum(block.reason is not None for block in found), "a comment that is not right before a block"


def test_links_of_the_readme_lead_somewhere():
    """`make docs` looks at those between the pages."""
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    for link in (link for link in links if "://" not in link):
        path, _, anchor = link.partition("#")
        assert (ROOT / path).is_file(), link
        headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), flags=re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, link


def test_the_readme_is_of_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_pictures_are_small_and_each_page_stands_in_the_navigation():
    assert not [path.name for path in (DOCS / "figures").iterdir() if path.stat().st_size > 300_000]
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert not [path.name for path in DOCS.glob("*.md") if f" {path.name}\n" not in navigation]


def keys_module():
    spec = importlib.util.spec_from_file_location("keys", DOCS / "keys.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_key_of_the_configuration_has_a_sentence():
    keys, schema = keys_module(), Config.model_json_schema()
    silent = []
    for path, section in keys.walk(schema, schema):
        assert path == "" or section.get("description"), f"{path}: what is this section?"
        for name, field in section["properties"].items():
            if not keys.objects(schema, field) and len(field.get("description", "")) < 7:
                silent.append(f"{path}.{name}")
    assert not silent, "keys without a description=: " + ", ".join(silent)


def test_the_page_of_the_keys_is_that_of_the_models():
    keys = keys_module()
    assert keys.PAGE.read_text(encoding="utf-8") == keys.page(), "write it anew: .venv/bin/python docs/keys.py"


def test_the_versions_agree():
    """The label of the image is what `cloudjob --version` says in it (tests/cluster/test_image.py)."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert cloudjob.__version__ == said
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[0] == said
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == said
    assert "version $(/opt/venv/bin/cloudjob --version | cut -d' ' -f2)\"" in (ROOT / "Apptainer.def").read_text()


@pytest.mark.slow
def test_a_wheel_and_an_sdist_are_built_and_installed():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("what belongs into them is what git tracks")
    done = subprocess.run([ROOT / "tests" / "dist.sh", sys.executable], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f": cloudjob {cloudjob.__version__}\n") == 2


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = "".join(path.read_text() for path in (tmp_path / "site").glob("*.html"))
    sources = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="?(https?:[^" >]+)', pages)
    sources += re.findall(r'<link[^>]*rel="?stylesheet"?[^>]*href="?(https?:[^" >]+)', pages)
    assert not sources, "the site opens without a network"

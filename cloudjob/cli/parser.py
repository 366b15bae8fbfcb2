"""The command line as argparse reads it: every command, its options and their help."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from cloudjob import __version__
from cloudjob.cli import typos
from cloudjob.files import expanded

STAGES = {
    "search": "ask the catalogue for products of the area, the dates and the cloud range",
    "preview": "fetch metadata, masks and the small picture of every product",
    "pair": "pair cloudy products with clear ones of the same tile",
    "review": "make the page on which a person accepts or rejects pairs",
    "download": "fetch the 10 m bands of the accepted pairs, verified",
    "shard": "cut triplets (cloudy, clear, mask) into HDF5 shards",
    "train": "train the diffusion model",
    "infer": "restore the ground under the clouds of every cloudy product",
    "evaluate": "score the outputs against the truth or the clear date, beside baselines",
    "report": "one self-contained page about the run",
}
BENCHES = ("download", "shard", "read", "train", "infer")
SHELLS = ("bash", "zsh", "tcsh")
PUBLIC = ("sen12mscr", "sen12mscr-ts", "allclear", "sen2mtc")
EXAMPLES = """examples:
  cloudjob run configs/demo.yaml                       all stages, on the embedded archive
  cloudjob train runs/demo --set train.epochs=20       one stage of a run folder
  cloudjob restore my.tif --checkpoint C --out DIR     an image of your own
To resume, run the same command again: only what is missing is made."""
_DRY_RUN = "show what would be done, and touch nothing"


class Parser:
    """The parser of `cloudjob`, built command by command; `root` parses a command line."""

    def __init__(self) -> None:
        self.root = typos.Parser(
            prog="cloudjob",
            description="Removes clouds from Sentinel-2 Level-2A scenes with a diffusion model, in restartable stages.",
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.root.add_argument("--version", action=_Version, nargs=0, help="show version and commit, and end")
        self.voice = typos.Parser(add_help=False)  # how much a command says, before its name or after
        loudness = self.voice.add_mutually_exclusive_group()
        text = "say only what goes wrong; the rest is in jobs/log.txt of the run folder"
        loudness.add_argument("-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help=text)
        text = "say each step, with the time"
        loudness.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help=text)
        self.root._add_container_actions(self.voice)
        self.commands = self.root.add_subparsers(metavar="COMMAND", dest="command", required=True)
        self.config = typos.Parser(add_help=False)  # what commands about a run have in common
        self.config.add_argument("config", metavar="CONFIG", type=_path, help="a YAML file, or a run folder")
        self.config.add_argument("--run-dir", type=_path, help="the run folder (default: runs/<name of the YAML file>)")
        _add_set(self.config, help="override, e.g. train.lr=2e-4")
        self._add_run()
        self._add_stages()
        self._add_restore()
        self._add_overviews()
        self._add_config()
        self._add_doctor()
        self._add_bench()
        self._add_compare()
        self._add_model()
        self._add_archive()
        self._add_import()
        self._add_completion()

    def _command(self, name: str, text: str, parents: Sequence[typos.Parser] = ()) -> argparse.ArgumentParser:
        return self.commands.add_parser(name, help=text, description=text, parents=[*parents, self.voice])

    def _add_run(self) -> None:
        run = self._command("run", "run all stages, or those from --from until --until", [self.config])
        run.add_argument("--from", dest="first", choices=tuple(STAGES), default="search")
        run.add_argument("--until", dest="last", choices=tuple(STAGES), default="report")
        run.add_argument("--dry-run", action="store_true", help=_DRY_RUN)

    def _add_stages(self) -> None:
        for name, text in STAGES.items():
            stage = self._command(name, text, [self.config])
            stage.add_argument("--only", action="append", default=[], metavar="ITEM", help="work on this item alone")
            stage.add_argument("--index", type=int, metavar="I", help="work on the I-th item (SLURM_ARRAY_TASK_ID)")
            stage.add_argument("--force", action="store_true", help="make items again that are done")
            stage.add_argument("--dry-run", action="store_true", help=_DRY_RUN)
            if name == "review":
                stage.add_argument("--apply", type=_path, metavar="CSV", help="take over the decisions.csv of the page")
                text = "write review/masks/<product>.tif; one that you change there replaces the product's mask"
                stage.add_argument("--export-masks", action="store_true", help=text)
            if name == "train":
                text = "start a new training from these weights"
                stage.add_argument("--init-from", type=_path, metavar="CHECKPOINT", help=text)
            if name == "shard":
                text = "print what the shards hold, and make nothing"
                stage.add_argument("--stats", action="store_true", help=text)

    def _add_restore(self) -> None:
        restore = self._command("restore", "restore images of your own: any GeoTIFF, COG, netCDF, SAFE folder or .zip")
        restore.add_argument(
            "images", metavar="IMAGE", nargs="+", type=_path, help="four bands, reflectance or numbers"
        )
        text = "a clear date of the same ground, brought onto the image; again for more, the most wanted first"
        restore.add_argument("--clear", metavar="IMAGE", action="append", default=[], type=_path, help=text)
        text = "where the cloud is (default: the scene classification of a SAFE, else a rough test of the four bands)"
        restore.add_argument("--mask", metavar="IMAGE", type=_path, help=text)
        text = "who made the mask (omnicloudmask, s2cloudless, binary ...), or which value is what: '{cloud: [1]}'"
        restore.add_argument("--mask-values", metavar="VALUES", help=text)
        restore.add_argument("--grown", action="store_true", help="the mask reaches over the edges of clouds already")
        text = "which are red, green, blue and near infrared, e.g. 4,3,2,8 or names (default: as the file says)"
        restore.add_argument("--bands", help=text)
        text = "reflectance = value x scale + offset (default: as the file says)"
        restore.add_argument("--scale", type=float, help=text)
        restore.add_argument("--offset", type=float, help="see --scale")
        restore.add_argument("--members", type=int, default=1, help="above 1 the results have an uncertainty")
        text = "the trained network: a step-NNNNNNNN.pt, or the run folder that it was trained in"
        restore.add_argument("--checkpoint", type=_path, required=True, help=text)
        restore.add_argument("--out", type=_path, required=True, help="the folder for the results")

    def _add_overviews(self) -> None:
        for name, text in (
            ("plan", "show what is done, missing or failed, and why it would run; touches nothing"),
            ("status", "the same, with progress, speed and the last sign of life"),
        ):
            self._command(name, text, [self.config]).add_argument("--json", action="store_true")
        items = self._command("items", "list the items of a stage, for sbatch --array")
        items.add_argument("stage", choices=tuple(STAGES))
        items.add_argument("config", metavar="CONFIG", type=_path)
        items.add_argument("--run-dir", type=_path)
        _add_set(items)
        which = items.add_mutually_exclusive_group()
        which.add_argument("--missing", action="store_true", help="only those not done")
        which.add_argument("--failed", action="store_true", help="only those that failed")
        which.add_argument("--left-out", action="store_true", help="only those that are gone or excluded, with why")
        items.add_argument("--as-array", action="store_true", help="as indices: 0-3,7")

    def _add_config(self) -> None:
        config = self._command("config", "show, check or describe a configuration")
        config.add_argument("action", choices=("show", "check", "schema"))
        config.add_argument("config", metavar="CONFIG", type=_path, nargs="?")
        _add_set(config)

    def _add_doctor(self) -> None:
        doctor = self._command("doctor", "say what a run needs and does not have, and what to do")
        doctor.add_argument("config", metavar="CONFIG", type=_path, nargs="?")
        doctor.add_argument("--run-dir", type=_path, help="the run folder whose disk is looked at")
        text = "also whether each service of the Data Space is reachable and accepts the credentials"
        doctor.add_argument("--online", action="store_true", help=text)
        text = "only what takes no time: neither torch nor a compiler is started"
        doctor.add_argument("--quick", action="store_true", help=text)
        doctor.add_argument("--json", action="store_true")
        _add_set(doctor)

    def _add_bench(self) -> None:
        bench = self._command("bench", "measure this node: ratios against the plain way")
        bench.add_argument("what", choices=BENCHES)
        text = "disk to measure (default: the temporary folder)"
        bench.add_argument("--dir", type=_path, help=text)
        text = "rows and columns of the scene of shard (default: 10980) and infer (5490)"
        bench.add_argument("--size", type=int, metavar="PIXELS", help=text)
        bench.add_argument("--json", action="store_true")

    def _add_compare(self) -> None:
        compare = self._command("compare", "train and score named variants of one configuration, for one table")
        text = "the variants, e.g. configs/comparison.yaml"
        compare.add_argument("config", metavar="CONFIG", type=_path, help=text)
        text = "holds one run folder per variant (default: runs/<name of the file>)"
        compare.add_argument("--run-dir", type=_path, help=text)
        which = compare.add_mutually_exclusive_group()
        text = "this variant alone; base: the data"
        which.add_argument("--only", action="append", default=[], metavar="NAME", help=text)
        which.add_argument("--index", type=int, metavar="I", help="the I-th variant alone (SLURM_ARRAY_TASK_ID)")
        compare.add_argument("--dry-run", action="store_true", help=_DRY_RUN)
        compare.add_argument("--json", action="store_true")

    def _add_model(self) -> None:
        model = self._command("model", "parameters, MACs and activation bytes of a network")
        model.add_argument("preset", metavar="PRESET")
        model.add_argument("--size", type=int, default=256, help="rows and columns of the input")
        model.add_argument("--json", action="store_true")

    def _add_archive(self) -> None:
        archive = self.commands.add_parser("archive", help="make or serve the embedded archive")
        actions = archive.add_subparsers(dest="action", metavar="{make,serve}", required=True)
        actions.add_parser(
            "make", parents=[self.config, self.voice], help="make the products that a configuration describes"
        )
        serve = actions.add_parser("serve", help="serve a folder of products as the Data Space does")
        serve.add_argument("folder", type=_path)
        serve.add_argument("--port", type=int, default=8765)
        text = "serve with faults: a YAML file of names and rates, e.g. configs/faults.yaml"
        serve.add_argument("--faults", type=_path, metavar="FILE", help=text)
        serve.add_argument("--seed", type=int, default=0, help="of the faults: who meets which")
        text = "append a line of JSON for each request"
        serve.add_argument("--journal", type=_path, metavar="FILE", help=text)

    def _add_import(self) -> None:
        text = "make shards of a public data set, as it is published, to train and score on"
        public = self._command("import", text)
        public.add_argument("kind", metavar="KIND", choices=PUBLIC, help=", ".join(PUBLIC))
        public.add_argument("folder", metavar="FOLDER", type=_path, help="where the data set lies")
        public.add_argument("--out", metavar="DIR", type=_path, required=True, help="the run folder of its shards")
        _add_set(public, help="override, e.g. pair.references=1")

    def _add_completion(self) -> None:
        completion = self._command("completion", "print what completes command lines, for a shell to read")
        completion.add_argument("shell", choices=SHELLS)


class _Version(argparse.Action):
    """Says which cloudjob this is. Git is asked only when somebody wants to know."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from cloudjob.hpc.machine import commit

        known = commit()
        print(f"cloudjob {__version__}" + (f" ({known})" if known else ""))
        parser.exit()


def _path(text: str) -> Path:
    """A path; `~` and `$VAR` are put in, which a shell leaves in `--run-dir=~/run`. One that exists is taken as is."""
    try:
        return Path(text if os.path.lexists(text) else expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line; a mistake in it, or --help, ends the process with argparse's exit codes (2 and 0)."""
    return Parser().root.read(argv)


def _add_set(parser: argparse.ArgumentParser, help: str | None = None) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help)

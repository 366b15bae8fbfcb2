"""The pages of the documentation: their blocks of code, and a reader who does what they say.

A block is run unless a comment before it says why not: `<!-- not run: REASON -->`. One with a title is a file.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import forked
import rehearsal

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}
CLOUDJOB = (sys.executable, "-m", "cloudjob")
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?"
    r'```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)
NEEDS_A_SHELL = re.compile(r"[$~*|<>;&]")


@dataclass(frozen=True)
class Block:
    """Code between two fences, below the heading `part`; `reason` says why it is not run."""

    place: str
    part: str
    language: str
    title: str | None
    code: str
    reason: str | None

    @property
    def runs(self) -> bool:
        """Whether a reader does what it says."""
        return self.reason is None and self.language in ("sh", "python")

    @property
    def commands(self) -> list[str]:
        """Its lines, continued ones joined, without comments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks(page: str) -> list[Block]:
    """All blocks of a page."""
    text, found = PAGES[page].read_text(encoding="utf-8"), []
    for match in BLOCK.finditer(text):
        headings = re.findall(r"^#+ (.+)$", text[: match.start()], flags=re.MULTILINE)
        place = f"{page}:{text.count(chr(10), 0, match.start('code')) + 1}"
        found.append(Block(place, (headings or [""])[-1], **match.groupdict()))
    return found


class Reader:
    """Does what a page says: commands in a folder, with one environment, and Python in one interpreter."""

    def __init__(self, folder: Path, **names: object):
        """`names` are what the Python of a page begins with."""
        self.folder, self.names = folder, names
        programs = folder / "bin"
        self.env = os.environ | {"HOME": str(folder), "PATH": f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin"}
        programs.mkdir(exist_ok=True)
        rehearsal.install(programs, CLOUDJOB)

    def follow(self, page: str) -> dict[str, str]:
        """Runs the page; what each of its Python blocks printed, by heading."""
        said: dict[str, str] = {}
        for block in blocks(page):
            if block.title:
                (self.folder / block.title).write_text(block.code)
            elif block.runs and block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    exec(compile(block.code, block.place, "exec"), self.names)
                said[block.part] = said.get(block.part, "") + printed.getvalue()
            elif block.runs:
                for command in block.commands:
                    self._run(command, block.place)
        return said

    def _run(self, command: str, place: str) -> None:
        words = shlex.split(command, comments=True)
        if words[0] == "export":
            self.env |= dict(word.split("=", 1) for word in words[1:])
            return
        if words[0] == "cloudjob" and not NEEDS_A_SHELL.search(command.partition(" #")[0]):
            done = forked.run([*CLOUDJOB, *words[1:]], cwd=self.folder, env=self.env)
        else:
            shell = ["bash", "-euo", "pipefail", "-c", command]
            options = {"cwd": self.folder, "env": self.env, "capture_output": True, "text": True, "timeout": 300}
            done = subprocess.run(shell, check=False, **options)
        assert done.returncode == 0, f"{place}: {command}\nends with {done.returncode}\n{done.stdout}{done.stderr}"

"""The table that the documentation has of a GPU, from what a check has brought back: table.py [FOLDER]."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path


def table(folder: Path) -> str:
    """Markdown. What was not measured is not in it."""
    found: dict = {}
    for part in ("smoke", "bench"):
        path = folder / f"{part}.json"
        found |= json.loads(path.read_text()) if path.exists() else {}
    results = {name: step.get("result", {}) for name, step in found.items()}
    machine = results.get("machine", {})
    lines = [f"{machine.get('gpu') or 'no GPU: a rehearsal'}, torch {machine.get('versions', {}).get('torch')}", ""]
    lines += ["| what | measured |", "|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {value} |" for what, value in rows(results))])


def rows(results: dict[str, dict]) -> Iterator[tuple[str, str]]:
    for step in ("step_small", "step_base"):
        for what, found in results.get(step, {}).items():
            if isinstance(found, dict) and "samples/s" in found:
                share, memory = found["share of the matrix product"], found.get("gpu_gib", "-")
                why = f"; NOT COMPILED: {found['fallback']}" if found.get("fallback") else ""
                yield (
                    f"`{step[5:]}`, {what}",
                    f"{found['samples/s']} samples/s, {share:.0%} of the matrix product, {memory} GiB{why}",
                )
            elif isinstance(found, dict) and "kernels and copies" in found:
                waits = found.get("waits of the host", {}).get("number", "-")
                yield f"`{step[5:]}`, {what}", f"{found['kernels and copies']} launches and copies, {waits} waits"
    for preset, found in results.get("notebook", {}).items():
        yield f"`{preset}`: step over the notebook's way", str(found["ratio"])
    if training := results.get("training"):
        yield "37,661 triplets of `small`", f"{training['seconds']} s, {training['data_wait_pct']} % waiting for data"
    for step in ("same_bits", "resume"):
        for what, found in results.get(step, {}).items():
            yield f"{step}: {what}", str(found.get("same", found.get("same bytes")))


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if len(sys.argv) > 1 else "gpu-out")))

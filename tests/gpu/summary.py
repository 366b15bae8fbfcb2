"""What one reads first of a part of the check: the figures in few lines, the whole of them is in the JSON."""

import json
from typing import Any

MOST = 11_000  # characters
LONG = ("rows", "validation", "checks", "last", "said", "energy")  # lists that stay in the JSON


def text(part: str, found: dict[str, dict]) -> str:
    """Of the steps of a part, by name."""
    results = {name: step.get("result", {}) for name, step in found.items()}
    verdicts = ", ".join(f"{name} {'ok' if step['ok'] else 'FAILED'}" for name, step in found.items())
    lines = [f"--- {part}: {verdicts}"]
    for name, step in found.items():
        reasons = step.get("failed", {}).items()
        lines += [f"{name}: {what}: {str(why).strip().splitlines()[-1][:200]}" for what, why in reasons]
    for name, result in results.items():
        lines += _LINES[name](name, result) if name in _LINES else []
    return "\n".join(lines)[-MOST:]


def _all(name: str, result: dict) -> list[str]:
    return [f"{name}: {key}: {value}" for key, value in result.items()]


def _step(name: str, result: dict) -> list[str]:
    return [f"{name}: {key}: {line}" for key, value in result.items() if (line := _measured(value))]


def _measured(value: Any) -> str | None:
    """A line on a measurement of a training step."""
    if isinstance(value, dict) and "samples/s" in value:
        share, memory = value.get("share of the matrix product"), value.get("gpu_gib")
        pace = f"{value['samples/s']} samples/s, {value['ms a step']} ms"
        return f"{pace}, {share} of the matrix product, {memory} GiB"
    if isinstance(value, dict) and "ms of kernels" in value:
        waits = value.get("waits of the host", {}).get("number")
        kernels = f"{value['kernels and copies']} kernels, {value['ms of kernels']} ms"
        return f"{kernels} of {value['ms a step, profiled']}, the host waits {waits} times"
    return None


def _ratio(name: str, result: dict) -> list[str]:
    return [f"{name}: {key}: ratio {value['ratio']}" for key, value in result.items() if isinstance(value, dict)]


def _same(name: str, result: dict) -> list[str]:
    found = {key: value for key, value in result.items() if isinstance(value, dict)}
    return [f"{name}: {key}: {value.get('same', value.get('same bytes'))}" for key, value in found.items()]


def _short(name: str, result: dict) -> list[str]:
    kept = {key: value for key, value in result.items() if key not in LONG}
    return [f"{name}: {json.dumps(kept, default=str)[:700]}"] if kept else []


def _scene(name: str, result: dict) -> list[str]:
    lines = []
    for key, value in result.items():
        if isinstance(value, dict):
            costly = list(value["by function"].get("calls and seconds, ours", {}).items())[:14]
            parts = ", ".join(f"{function} {seconds}" for function, (_, seconds) in costly)
            lines.append(f"{name}: {key}: {value['seconds']} s for {value['size']}; {parts}")
    return lines


_LINES = {
    "ceilings": _all,
    "loader": _all,
    "step_base": _step,
    "step_small": _step,
    "notebook": _ratio,
    "same_bits": _same,
    "resume": _same,
    "tests": _short,
    "ranks": _short,
    "mpi": _short,
    "training": _short,
    "fit": _short,
    "data": _short,
    "scene": _scene,
    "table": lambda name, result: result.get("table", []),
}

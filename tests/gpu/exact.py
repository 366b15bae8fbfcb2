"""Whether a GPU computes what was promised: as a CPU does, the same bits again, and the same after a stop."""

import re
import shutil
import threading

import torch
from findings import Findings
from machine import COMPILED, CPU, WORK, device
from samples import make_step, triplets
from torch import Tensor
from trainings import said, small_run, train

from cloudjob.diffusion import checkpoint, noise
from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.conditions import Conditions, Normalisation
from cloudjob.pixels import BANDS
from cloudjob.run.folder import RunFolder
from cloudjob.training import precision

PRESET = "tiny" if CPU else "small"
NEAR = 0.03  # of the loss: bfloat16 may differ by that much


def _apart(a: Tensor, b: Tensor) -> float:
    """The distance of two tensors over the length of the second."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / (b.norm() + 1e-30))


def arithmetic(found: Findings) -> None:
    """What the GPU computes, against the CPU: the same bits where that is promised, else how far apart."""
    count, size = (4, 32) if CPU else (8, 256)
    arrays = triplets(count, size)
    found.attempt("noise: the same bits as on a CPU", _noise, size)
    found.attempt("conditions", _conditions, arrays)
    found.attempt("loss and norm of the gradient", _losses, arrays)


def _noise(size: int) -> dict:
    here, shape = device(), (8, len(BANDS), size, size)
    field = {"rows": range(300, 300 + size), "cols": range(77, 77 + size), "bands": len(BANDS), "member": 3}
    row, col, end = 10, 5, size - 3
    window = field | {"rows": range(300 + row, 300 + end), "cols": range(77 + col, 77 + end)}
    there = noise.field(1, **field, device=here)
    normals = [noise.normals(1, list(range(8)), "noise", like=torch.empty(shape, device=at)) for at in (here, "cpu")]
    same = {
        "normals": torch.equal(normals[0].cpu(), normals[1]),
        "field": torch.equal(there.cpu(), noise.field(1, **field)),
        "window of a field": torch.equal(there[:, row:end, col:end], noise.field(1, **window, device=here)),
    }
    if not all(same.values()):
        raise AssertionError(same)
    return same


def _conditions(arrays: dict) -> dict:
    norm = Normalisation((0.2,) * len(BANDS), (0.08,) * len(BANDS))
    here, cpu = (Conditions.of(Batch.of(arrays, at), norm=norm, first_guess="similar") for at in (device(), "cpu"))
    return {
        "cloudy equal": torch.equal(here.cloudy.cpu(), cpu.cloudy),
        "anchor apart": _apart(here.anchor, cpu.anchor),
        "channels apart": _apart(here.channels(), cpu.channels()),
    }


def _losses(arrays: dict) -> dict:
    """[loss, norm of the gradient] by precision; AssertionError where one is far from the CPU's."""

    def one(at: torch.device, kind: str, compiled: bool) -> list[float]:
        options = {"synthetic_clouds": 0.5, "batch_size": count, "precision": kind, "compile": compiled}
        value, norm = make_step(PRESET, arrays, at, **options).gradient(
            torch.arange(count, device=at), Batch.of(arrays, at)
        )
        return [float(value), float(norm)]

    count, found = len(arrays["mask"]), {}
    for kind in ("float32", "bfloat16"):
        for compiled in COMPILED:
            found[f"{kind}{' compiled' if compiled else ''}"] = one(device(), kind, compiled)
    torch.backends.cudnn.allow_tf32 = False
    found["float32 without TF32"] = one(device(), "float32", False)
    found["CPU, float32"] = one(torch.device("cpu"), "float32", False)
    true = found["CPU, float32"][0]
    far = {name: value for name, (value, _) in found.items() if not abs(value / true - 1) < NEAR}
    if far:
        raise AssertionError(f"on a CPU the loss is {true}, not {far}")
    return found


def same_bits(found: Findings) -> None:
    """Whether a step gives the same bits again, which a resumed training needs; by flags, eager and compiled."""
    size, batch = (64, 4) if CPU else (256, 16)
    arrays = triplets(batch, size)
    for flag in (False, True):
        precision.settle(device(), exact=flag)
        name = "as a training has it" if flag else "not exact"
        found.attempt(f"{PRESET}, eager, {name}", _again, PRESET, arrays, compiled=False)
        if not CPU:
            found.attempt(f"small, compiled, {name}", _again, "small", arrays, compiled=True)
            found.attempt(f"base-attention, eager, {name}", _again, "base-attention", arrays, compiled=False, repeats=3)


def _again(preset: str, arrays: dict, *, compiled: bool, repeats: int = 4) -> dict:
    """The tensors that differ between repetitions of one step: its loss and all gradients."""
    here, count = device(), len(arrays["mask"])
    made = make_step(preset, arrays, here, compile=compiled, synthetic_clouds=0.5, batch_size=count)
    seen = []
    for _ in range(repeats):
        loss, _ = made.gradient(torch.arange(count, device=here), Batch.of(arrays, here))
        seen.append([loss.detach().clone(), *(weight.grad.clone() for weight in made.network.parameters())])
    names = ["loss", *(name for name, _ in made.network.named_parameters())]
    other = [
        name
        for number, name in enumerate(names)
        if any(not torch.equal(seen[0][number], one[number]) for one in seen[1:])
    ]
    return {"same": not other, "tensors that differ": len(other), "of": len(names), "such as": other[:6]}


def resume(found: Findings) -> None:
    """Whether a training that was stopped and goes on ends in the bytes of one that was not; eager and compiled."""
    base = small_run(WORK / "resume", "tiny", 64 if CPU else 128)
    threads = []
    for compiled in COMPILED:
        name = "compiled" if compiled else "eager"
        threads.append(threading.Thread(target=found.attempt, args=(name, _stopped_and_not, found, base, compiled)))
        threads[-1].start()
    for thread in threads:
        thread.join()


def _stopped_and_not(found: Findings, base: RunFolder, compiled: bool) -> dict:
    """Two trainings, each with a cache of compiled kernels of its own, and their last checkpoints compared."""
    name = "compiled" if compiled else "eager"
    settings = {"samples": 64, "batch_size": 4} if CPU else {"samples": 640, "batch_size": 16}
    settings |= {"log_s": 0.001, "synthetic_clouds": 0.5, "checkpoint_s": 1000, "warmup": 100}
    settings["compile"] = str(compiled).lower()
    plain, stopped = (RunFolder(base.root.with_name(f"{name}-{kind}")) for kind in ("plain", "stopped"))
    for folder in (plain, stopped):
        shutil.copytree(base.root, folder.root)
    ran: dict = {}
    beside = threading.Thread(
        target=lambda: ran.update(plain=train(found, plain, settings, cache=f"{name}-plain")),
    )
    beside.start()
    ran["stopped"] = train(found, stopped, settings, stop_at=settings["samples"] * 2 // 5, cache=f"{name}-stopped")
    ran["resumed"] = train(found, stopped, settings, cache=f"{name}-stopped")
    beside.join()
    exits = [ran.get(kind, {}).get("exit") for kind in ("plain", "stopped", "resumed")]
    if exits != [0, 75, 0]:
        raise RuntimeError(f"exits {exits}, not 0, 75, 0: {ran}")
    return ran | _compared(plain, stopped, settings["samples"])


def _compared(plain: RunFolder, stopped: RunFolder, samples: int) -> dict:
    paths = [checkpoint.newest(folder.checkpoints) for folder in (plain, stopped)]
    states = [checkpoint.load(path) for path in paths]
    if {state.seen for state in states} != {samples}:
        raise RuntimeError(f"not at their ends: {paths}")
    pairs = [(states[0].model[name], states[1].model[name]) for name in states[0].model]
    return {
        "goes on from": (re.findall(r"goes on from (step-\d+\.pt)", said(stopped).read_text()) or [None])[-1],
        "same bytes": paths[0].read_bytes() == paths[1].read_bytes(),
        "file": [path.name for path in paths],
        "weights that differ": sum(not torch.equal(a, b) for a, b in pairs),
        "of": len(pairs),
        "apart": max(_apart(a, b) for a, b in pairs),
    }

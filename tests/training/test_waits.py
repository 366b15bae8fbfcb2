"""What a step asks of its device that the program would have to wait for: nothing but which blocks the first guess by
similar pixels is made of. Counted on torch's meta device, and where an answer is needed on the processor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from counting import Asked
from torch._inductor import metrics

from cloudjob.diffusion import noise
from cloudjob.diffusion.batch import Batch
from cloudjob.diffusion.clouds import lay
from cloudjob.diffusion.recipe import Recipe
from cloudjob.hpc import distributed
from cloudjob.pixels import CLOUD
from cloudjob.training.agreement import NOTHING, Agreement
from cloudjob.training.compilation import plain_kernels
from cloudjob.training.settings import Settings
from cloudjob.training.step import Objective, Step

PLAIN = Settings(options={}, preset="tiny", batch_size=4, compile=False, precision="float32")
META = torch.device("meta")
EXPECTED = ("-0x1.8852cap-1", "-0x1.449b4ap-1", "0x1.07be66p-3", "-0x1.ef171ap-2")
SIGMA = "0x1.29504c5cf8b68p-3"


def arrays(count: int, size: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(1, 9000, (count, 4, size, size)).astype(np.uint16) for name in ("cloudy", "clear")}
    mask = np.zeros((count, size, size), np.uint8)
    mask[:, 4:12, 4:20] = CLOUD
    numbers = {"sun_elevation": 14, "reference_days": 8, "clear_days": 3}
    given = {name: np.full(count, value, np.float32) for name, value in numbers.items()}
    return images | given | {"mask": mask, "donor": mask[:, ::-1].copy(), "reference": images["clear"]}


def recipe(process: str, **options) -> Recipe:
    options |= {"alpha": 0.5, "drift": (1.0, 0.1)} if process == "residual" else {}
    return Recipe.of("tiny", process, mean=[0.2] * 4, std=[0.1] * 4, **options)


@contextmanager
def unasked() -> Iterator[None]:
    """The processor is asked no more than a GPU would be, and given as much at once."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("batch", "clouds", "conditions", "neighbours", "similarity"):
            patch.setattr(f"cloudjob.diffusion.{module}.answers", lambda tensor: False)
        patch.setattr("cloudjob.diffusion.similarity._budget", lambda like: 2**27)
        yield


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("process", ["corrective", "residual", "regression", "ddpm", "ddpm-residual"])
def test_preparing_a_batch_neither_waits_nor_transfers_anything(process, share):
    """What is on the device already: the batch, its numbers, and, after a first time, the constants."""
    settings = replace(PLAIN, synthetic_clouds=share)
    objective = Objective(recipe(process), torch.nn.Identity(), settings)
    zero = torch.zeros(4, 4, 32, 32, device=META)
    batch, samples = Batch.of(arrays(4), META), torch.arange(4, device=META)
    for _ in range(2):
        with Asked() as asked:
            objective.recipe.loss(lambda x, level, told: zero, batch, seed=3, samples=samples, **objective.options)
    others = {name: count for name, count in asked.names.items() if not name.startswith("launches")}
    assert others == {}
    assert asked.counts["launches"] > 100  # it was counted


@pytest.mark.parametrize(("references", "most"), [(1, 1270), (3, 1590)])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_with_a_first_guess_by_similar_pixels_it_waits_once_for_the_blocks(references, most, share):
    """And sends once which blocks it computes; however many there are, it launches as much."""
    settings = replace(PLAIN, synthetic_clouds=share)
    made = recipe("corrective", first_guess="similar", deviation=True)
    objective = Objective(made, torch.nn.Identity(), settings)
    given = arrays(4, 128)
    for number in range(2, references + 1):
        given |= {f"reference{number}": given["reference"].copy(), f"reference{number}_days": given["reference_days"]}
        given[f"reference{number}"][:, :, 8 * number : 8 * number + 6] = 0  # so that there are patterns of dates
    given["mask"][:, 20:110, 30:100] = CLOUD
    zero, batch, samples = torch.zeros(4, 9, 128, 128), Batch.of(given), torch.arange(4)

    def network(x, level, told):
        return zero if x is None else zero[:, :4]

    with unasked():
        for _ in range(2):
            with Asked("cpu") as asked:
                objective.recipe.loss(network, batch, seed=3, samples=samples, **objective.options)
    others = {name: count for name, count in asked.names.items() if not name.startswith("launches")}
    assert others == {"waits: numpy": 1, "to it: lift_fresh": 1}
    assert asked.counts["launches"] <= most + 1030 * (share > 0)


def test_the_counter_hears_of_every_way_to_wait():
    some = torch.arange(6.0)
    with Asked("cpu") as asked:
        some[some > 2]
        some[some > 2] = 1.0
        some.sum().item(), bool(some.any()), some.tolist(), some.numpy(), some.nonzero()
        torch.linalg.cholesky(torch.eye(2))
        torch.linalg.cholesky_ex(torch.eye(2), check_errors=True)
        torch.tensor([1.0, 2.0])
    assert asked.counts["waits"] == 9, asked.names
    assert asked.names["to it: lift_fresh"] == 2  # the value that was set, and the two numbers


def test_a_batch_is_sent_once():
    with Asked() as asked:
        batch = Batch.of(arrays(4), META)
        torch.tensor([4, 5, 6, 7]).to(META)
    assert asked.counts["to it"] == len(batch.tensors()) + 1 == 9
    assert asked.counts["from it"] == asked.counts["waits"] == 0


def test_of_a_whole_step_the_votes_alone_come_back(monkeypatch):
    """Loss, gradient, clipping, votes: with the optimizer's step left out, whose kernels have no meta device."""
    back = []
    monkeypatch.setattr(distributed, "asked_for", lambda votes: (back.append(votes) or votes, None))
    made = recipe("corrective")
    step = Step(made, made.network(), PLAIN)
    network = made.network().to(META)
    step.alone, step.device = Objective(made, network, replace(PLAIN, synthetic_clouds=0.5)), META
    step.objective, step.network = step.alone, network
    step._loss = step.objective  # without autocast, which knows no meta device
    agreement = Agreement(META, first=True, late=True)
    batch, samples = Batch.of(arrays(4), META), torch.arange(4, device=META)
    for number in range(2):
        with Asked() as asked:
            agreement.vote(NOTHING, *step.gradient(samples, batch), seen=4 * number)
    assert len(back) == 2  # which go into pinned memory, and are read a step later
    assert asked.counts["waits"] == asked.counts["from it"] == 0, asked.names
    assert asked.counts["to it"] == 1, asked.names  # the votes


def test_without_being_asked_a_device_does_the_same_to_a_sample():
    """Symmetries and clouds, as a GPU has them, against what a processor does."""
    batch, samples = Batch.of(arrays(16)), list(range(16))

    def prepared() -> Batch:
        return lay(batch.turned(seed=1, samples=samples), share=0.5, other_ground=0.5, seed=1, samples=samples)

    expected = prepared()
    with unasked():
        found = prepared()
    assert not torch.equal(expected.cloudy, batch.cloudy)
    for one, other in zip(found.tensors(), expected.tensors(), strict=True):
        assert torch.equal(one.nan_to_num(-9), other.nan_to_num(-9))


@pytest.mark.slow
def test_compiled_noise_has_the_bits_of_the_plain_one():
    """Integers and one sum of two table values: as on every device."""

    def drawn(numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        like = torch.empty(len(numbers), 4, 16, 16)
        return noise.normals(7, numbers, "noise", like=like), noise.uniforms(7, numbers, "sigma")

    noise.prepare(torch.device("cpu"))
    compiled = torch.compile(drawn, fullgraph=True, dynamic=False)
    for first in (0, 10**12):
        numbers = torch.arange(first, first + 5)
        for one, other in zip(compiled(numbers), drawn(numbers), strict=True):
            assert torch.equal(one, other)


def test_numbers_on_a_device_draw_as_plain_ones_do():
    plain, there = [3, 99, 2**40], torch.tensor([3, 99, 2**40])
    like = torch.empty(3, 2, 5, 6)
    assert torch.equal(noise.normals(1, plain, "a", like=like), noise.normals(1, there, "a", like=like))
    assert torch.equal(noise.uniforms(1, plain, "a"), noise.uniforms(1, there, "a"))


def test_the_noise_is_the_one_that_running_trainings_have_begun_with():
    """Other bits would end the promise that to stop and to go on is never to have stopped."""
    drawn = noise.normals(5, [10, 2**33], "noise", like=torch.empty(2, 1, 1, 2)).flatten().tolist()
    assert drawn == [float.fromhex(value) for value in EXPECTED]
    assert noise.uniforms(5, [10], "sigma").item() == float.fromhex(SIGMA)


@pytest.mark.slow
def test_compiled_a_batch_is_prepared_by_one_graph_of_at_most_100_kernels(monkeypatch):
    """Counted by what torch makes for a processor, with a network that costs one kernel a call."""
    made = recipe("corrective")
    settings = replace(PLAIN, synthetic_clouds=0.0)
    options = Objective(made, torch.nn.Identity(), settings).options
    batch = Batch.of(arrays(4))

    def prepared(batch: Batch, samples: torch.Tensor) -> torch.Tensor:
        def network(x, level, told):
            return told[:, :4] * told[:, 4:8] if x is None else x * level[:, None, None, None] * told[:, -4:]

        return made.loss(network, batch, seed=0, samples=samples, **options)

    noise.prepare(torch.device("cpu"))
    monkeypatch.setattr(torch._inductor.config.cpp, "simdlen", None)  # as before, afterwards
    monkeypatch.setattr(torch._inductor.config, "cpp_cache_precompile_headers", True)
    plain_kernels(torch.device("cpu"))
    metrics.reset()
    torch._dynamo.reset()
    compiled = torch.compile(prepared, fullgraph=True, dynamic=False)
    with torch.no_grad():
        for first in (0, 4):
            samples = torch.arange(first, first + 4)
            torch.testing.assert_close(compiled(batch, samples), prepared(batch, samples), rtol=1e-5, atol=0)
    assert 10 < metrics.generated_kernel_count - 2 <= 100  # without the two of the network; once for both steps

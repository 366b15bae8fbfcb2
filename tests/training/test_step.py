"""One step: its learning rate, the gradient of micro-batches, clipping, and the optimizer, against plain formulas."""

import math
from dataclasses import replace

import pytest
import torch
from batches import batch as made
from torch import nn

from cloudjob.diffusion.recipe import Recipe
from cloudjob.errors import ConfigError
from cloudjob.hpc import distributed
from cloudjob.pixels import CLOUD
from cloudjob.training.settings import Settings
from cloudjob.training.step import Objective, Step, learning_rate

PLAIN = Settings(options={}, batch_size=10, lr=0.5, warmup=100, compile=False, precision="float32", clip_norm=1e9)


# --- learning rate -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seen", "rate"),
    [
        (0, 0.05),  # 10 of the 100 samples that the warm-up takes
        (40, 0.25),
        (80, 0.45),
        (90, 0.5),  # the step that ends at 100 samples is the first one at full rate
        (100, 0.5),
        (990, 0.5),
    ],
)
def test_the_rate_rises_in_a_line(seen, rate):
    assert learning_rate(replace(PLAIN, decay=False), seen=seen, total=1000) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("seen", "share"),
    [(0, 1.0), (1000 / 3, 0.75), (500, 0.5), (2000 / 3, 0.25), (1000, 0.0), (100, 0.9755282581475768)],
)
def test_the_rate_falls_as_half_a_cosine(seen, share):
    for warmup in (0, 1):
        found = learning_rate(replace(PLAIN, warmup=warmup), seen=seen, total=1000)
        assert found == pytest.approx(0.5 * share, abs=1e-12)


def test_warm_up_and_decay_are_multiplied():
    assert learning_rate(PLAIN, seen=40, total=80) == pytest.approx(0.5 * 0.5 * 0.5)


# --- gradient ----------------------------------------------------------------------------------------------------
class Squares:
    """A recipe whose loss is the mean over samples of (weight - the sample's number) squared. It keeps its calls."""

    def __init__(self):
        self.calls = []

    def loss(self, network, batch, *, seed, samples, **options):
        samples = torch.as_tensor(samples).tolist()
        self.calls.append({"seed": seed, "samples": samples, "cloudy": batch.cloudy[:, 0, 0, 0].tolist(), **options})
        self.bfloat16 = torch.is_autocast_enabled("cpu")
        numbers = torch.tensor(samples, dtype=network.weight.dtype)
        return (network.weight.sum() - numbers).square().mean()


def step(settings: Settings = PLAIN, weight: float = 2.0, ranks: int = 1) -> tuple[Step, Squares]:
    network, recipe = nn.Linear(1, 1, bias=False).double(), Squares()
    with torch.no_grad():
        network.weight.fill_(weight)
    return Step(recipe, network, settings, ranks=ranks), recipe


def triplets(numbers: list[int]):
    """Each sample's cloudy image is its number."""
    images = torch.tensor(numbers, dtype=torch.float32)[:, None, None, None].expand(-1, 4, 8, 8)
    return made(images, torch.zeros(len(numbers), 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(("micro", "parts"), [(10, [5]), (5, [5]), (2, [2, 2, 1]), (1, [1] * 5), (3, [3, 2])])
def test_micro_batches_of_any_size_give_the_gradient_of_the_whole(micro, parts):
    one, recipe = step()
    one.micro = micro
    numbers = [1, 4, 9, 16, 25]
    loss, norm = one.gradient(numbers, triplets(numbers))
    # loss: mean of 1, 4, 49, 196, 529; gradient: 2 (2 - 11)
    assert float(loss) == pytest.approx(155.8)
    assert not loss.requires_grad
    assert float(norm) == pytest.approx(18)
    assert float(one.network.weight.grad) == pytest.approx(-18)
    assert [len(call["samples"]) for call in recipe.calls] == parts
    assert [n for call in recipe.calls for n in call["samples"]] == numbers
    assert [n for call in recipe.calls for n in call["cloudy"]] == numbers  # each sample with its own images
    again, _ = one.gradient(numbers, triplets(numbers))
    assert float(again) == pytest.approx(155.8)
    assert float(one.network.weight.grad) == pytest.approx(-18)  # not added to that of the step before


@pytest.mark.parametrize(("batch", "ranks", "micro"), [(8, 3, 10), (8, 3, 2), (7, 5, 1), (10, 2, 2)])
def test_the_mean_over_ranks_with_uneven_shares_is_that_of_the_batch(batch, ranks, micro):
    numbers, losses, gradients = list(range(3, 3 + batch)), [], []
    for rank in range(ranks):
        one, _ = step(replace(PLAIN, batch_size=batch), ranks=ranks)
        one.micro, share = micro, numbers[rank::ranks]
        losses.append(float(one.gradient(share, triplets(share))[0]))
        gradients.append(float(one.network.weight.grad))
    assert sum(losses) / ranks == pytest.approx(sum((2 - number) ** 2 for number in numbers) / batch)
    assert sum(gradients) / ranks == pytest.approx(sum(2 * (2 - number) for number in numbers) / batch)


def test_uneven_micro_batches_of_a_real_recipe_give_the_gradient_of_the_whole():
    recipe = Recipe.of("tiny", "regression", mean=[0.2] * 4, std=[0.1] * 4)
    torch.manual_seed(0)
    network = recipe.network()
    nn.init.normal_(network.head.weight, std=0.1)
    settings = replace(PLAIN, drop_reference=0.0, drop_mask=0.0)
    cloudy, target = torch.rand(2, 3, 4, 32, 32) * 0.4
    mask = torch.full((3, 32, 32), CLOUD, dtype=torch.uint8)  # so that each sample has the same weight
    given, gradients = made(cloudy, mask, target=target, sun_elevation=torch.full((3,), 30.0)), []
    for micro in (3, 2):
        one = Step(recipe, network, settings)
        one.micro = micro
        one.gradient([0, 1, 2], given)
        gradients.append(torch.cat([value.grad.flatten() for value in network.parameters()]))
    assert float(gradients[0].norm()) > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)


def test_only_the_last_micro_batch_is_averaged_over_the_ranks(monkeypatch):
    inside, seen = [], []

    class Unsynced:
        def __init__(self, module):
            inside.append(module)

        def __enter__(self):
            seen.append(True)

        def __exit__(self, *_):
            seen.append(False)

    monkeypatch.setattr(distributed, "unsynced", Unsynced)
    one, recipe = step()
    one.micro = 2
    loss = recipe.loss
    recipe.loss = lambda *arguments, **options: seen.append(options["samples"]) or loss(*arguments, **options)
    one.gradient([1, 2, 3, 4, 5], triplets([1, 2, 3, 4, 5]))
    assert seen == [True, [1, 2], False, True, [3, 4], False, [5]]
    assert set(inside) == {one.objective}


def test_the_gradient_is_clipped_and_its_norm_told_as_it_was():
    one, _ = step(replace(PLAIN, clip_norm=0.25))
    _, norm = one.gradient([11], triplets([11]))
    assert float(norm) == pytest.approx(18)
    assert float(one.network.weight.grad) == pytest.approx(-0.25, rel=1e-4)


def test_the_share_of_a_rank_is_computed_at_once_or_in_micro_batches():
    assert step(replace(PLAIN, batch_size=12), ranks=3)[0].micro == 4
    assert step(replace(PLAIN, batch_size=12, micro_batch=2), ranks=3)[0].micro == 2


# --- update ------------------------------------------------------------------------------------------------------
def adamw(gradients: list[float], rates: list[float], weight: float, betas: tuple[float, float], decay: float) -> float:
    """Loshchilov & Hutter 2019, algorithm 2."""
    first = second = 0.0
    for number, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        weight -= rate * decay * weight
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        corrected = first / (1 - betas[0] ** number), second / (1 - betas[1] ** number)
        weight -= rate * corrected[0] / (math.sqrt(corrected[1]) + 1e-8)
    return weight


@pytest.mark.parametrize(("betas", "decay"), [((0.9, 0.99), 0.01), ((0.5, 0.8), 0.3)])
def test_the_optimizer_is_adamw_with_these_settings(betas, decay):
    one, _ = step(replace(PLAIN, betas=betas, weight_decay=decay))
    gradients, rates = [], [0.1, 0.02, 0.3]
    for rate, number in zip(rates, (5, 1, 9), strict=True):
        one.gradient([number], triplets([number]))
        gradients.append(float(one.network.weight.grad))
        one.update(rate)
    assert one.network.weight.item() == pytest.approx(adamw(gradients, rates, 2.0, betas, decay), rel=1e-9)


def test_all_weights_take_the_rate_of_now():
    one, _ = step()
    one.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    one.gradient([3], triplets([3]))
    one.update(0.125)
    assert [group["lr"] for group in one.optimizer.param_groups] == [0.125, 0.125]


# --- precision and compilation -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("precision", "fast", "expected"),
    [("float32", True, False), ("bfloat16", False, True), ("auto", True, True), ("auto", False, False)],
)
def test_bfloat16_where_it_is_wanted_or_fast(monkeypatch, precision, fast, expected):
    monkeypatch.setattr(distributed, "fast_bfloat16", lambda device: fast)
    one, recipe = step(replace(PLAIN, precision=precision))
    one.gradient([3], triplets([3]))
    assert one.bfloat16 is expected
    assert recipe.bfloat16 is expected


@pytest.mark.parametrize(("choice", "compiled"), [(True, True), (False, False), ("auto", False)])
def test_the_network_is_compiled_where_it_is_wanted(monkeypatch, choice, compiled):
    calls = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *, dynamic: calls.append((self, dynamic)))
    one, _ = step(replace(PLAIN, compile=choice))
    assert one.compilation.asked is compiled
    assert calls == [(one.alone, False)] * compiled  # with what prepares a batch; kernels do not depend on the past
    assert one.rehearsed == (one.micro if compiled else 2)
    if choice is True:
        assert torch._dynamo.config.suppress_errors is False  # who asks for it is told why it fails


# --- connect -----------------------------------------------------------------------------------------------------
def test_alone_there_is_nothing_to_rehearse():
    one, recipe = step()
    one.connect(triplets([1, 2]))
    assert one.objective is one.alone
    assert recipe.calls == []


def test_with_other_ranks_a_step_is_rehearsed_and_leaves_nothing(monkeypatch):
    one, recipe = step()
    monkeypatch.setattr(distributed, "wrap", Wrapped)
    one.connect(triplets([7, 8]))
    assert isinstance(one.objective, Wrapped)
    assert [(call["samples"], call["cloudy"]) for call in recipe.calls] == [([0, 1], [7, 8])]
    assert one.network.weight.grad is None
    assert one.network.weight.item() == 2.0


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *arguments):
        return self.module(*arguments)


@pytest.mark.parametrize(("samples", "advice"), [(8, "set train.micro_batch=4 "), (1, "even one sample does not fit")])
def test_what_does_not_fit_into_the_memory_is_a_setting(samples, advice):
    one, recipe = step(replace(PLAIN, batch_size=samples))

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 80 GiB")

    recipe.loss = full
    numbers = list(range(samples))
    with pytest.raises(ConfigError, match=rf"train.micro_batch: {samples} samples at once do not fit") as failed:
        one.gradient(numbers, triplets(numbers))
    assert "Tried to allocate 2.00 GiB; " in str(failed.value)
    assert advice in str(failed.value)


# --- objective ---------------------------------------------------------------------------------------------------
def test_the_objective_hands_over_the_settings_and_what_differs_from_them():
    settings = replace(
        PLAIN, seed=4, clear_weight=0.11, drop_reference=0.22, drop_mask=0.33, synthetic_clouds=0.44, other_ground=0.55
    )
    recipe, network = Squares(), nn.Linear(1, 1, bias=False)
    objective = Objective(recipe, network, settings)
    objective(triplets([1]), [6])
    objective(triplets([1]), [6], drop_mask=0, synthetic_clouds=0)
    options = {"clear_weight": 0.11, "drop_reference": 0.22, "other_ground": 0.55}
    told = [{key: value for key, value in call.items() if key != "cloudy"} for call in recipe.calls]
    assert told == [
        {"seed": 4, "samples": [6], "drop_mask": 0.33, "synthetic_clouds": 0.44, **options},
        {"seed": 4, "samples": [6], "drop_mask": 0, "synthetic_clouds": 0, **options},
    ]
    assert [name for name, _ in objective.named_parameters()] == ["network.weight"]

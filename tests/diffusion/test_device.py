import pytest
import torch

from cloudjob.diffusion.device import answers, constant, full_products, sent

CPU, META = torch.device("cpu"), torch.device("meta")


def test_a_constant_is_copied_to_a_device_once():
    assert torch.equal(constant((1.5, 2.0), CPU), torch.tensor([1.5, 2.0])[:, None, None])
    assert constant((1.5, 2.0), CPU) is constant((1.5, 2.0), CPU)
    assert constant((1.5, 2.0), META).device == META


def test_a_constant_is_of_the_default_type():
    assert constant((0.1,), CPU).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert constant((0.1,), CPU).item() == 0.1
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_sent_arrives_as_it_is():
    values = torch.arange(5)
    assert torch.equal(sent(values, CPU), values)
    assert sent(values, META).device == META


def test_only_a_processor_answers():
    assert answers(torch.zeros(1))
    assert not answers(torch.zeros(1, device=META))


def test_full_products_end_with_an_error_too():
    products = torch.backends.cuda.matmul

    def failing() -> None:
        with full_products():
            assert not products.allow_tf32
            raise ZeroDivisionError

    products.allow_tf32 = True
    try:
        with pytest.raises(ZeroDivisionError):
            failing()
        assert products.allow_tf32
    finally:
        products.allow_tf32 = False

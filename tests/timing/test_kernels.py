import pytest
import torch

from selfprune.timing.kernels import dense_product, median_seconds, sparse_products

CPU = torch.device("cpu")


def half_zero(device="cpu", dtype=torch.float32):
    """A weight with two zeros in every four, and inputs."""
    weight_OI = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    weight_OI.reshape(-1, 4)[:, ::2] = 0
    input_TI = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    return weight_OI.to(device, dtype), input_TI.to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kernel_gives_the_dense_result(dtype):
    weight_OI, input_TI = half_zero(dtype=dtype)
    expected_TO = input_TI.double() @ weight_OI.double().T
    torch.testing.assert_close(dense_product(weight_OI, input_TI)().double(), expected_TO, rtol=1e-4, atol=1e-4)
    products = sparse_products(weight_OI, input_TI)
    assert list(products) == ["csr"]
    torch.testing.assert_close(products["csr"]().T.double(), expected_TO, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_lacks_a_number_format_is_left_out():
    integers = (torch.eye(8, dtype=torch.int8), torch.ones(4, 8, dtype=torch.float32))
    assert sparse_products(*integers) == {}


def test_no_beta_warning_reaches_the_reader(recwarn):
    sparse_products(*half_zero())
    assert [str(warning.message) for warning in recwarn] == []


def test_a_product_is_repeated_and_its_median_taken(monkeypatch):
    clock = iter([0.0, 9.0, 0.0, 1.0, 0.0, 2.0, 0.0, 5.0, 0.0, 3.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    # one to warm up, one to see how many fit into a repeat, then three repeats of 2, 5 and 3 seconds
    assert median_seconds(lambda: calls.append(0), CPU, n_repeats=3) == 3.0
    assert len(calls) == 5


def test_short_products_are_repeated_within_a_measurement(monkeypatch):
    clock = iter([0.0, 1.0, 0.0, 1e-4, 0.0, 2e-3])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    assert median_seconds(lambda: calls.append(0), CPU, n_repeats=1) == pytest.approx(2e-4)
    assert len(calls) == 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_a_kernel_for_two_of_four():
    weight_OI, input_TI = half_zero("cuda", torch.float16)
    products = sparse_products(weight_OI, input_TI)
    assert "2:4" in products
    torch.testing.assert_close(products["2:4"](), dense_product(weight_OI, input_TI)(), rtol=1e-2, atol=1e-2)
    weight_OI[0, :4] = 1
    assert "2:4" not in sparse_products(weight_OI, input_TI)

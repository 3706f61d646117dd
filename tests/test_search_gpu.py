"""Searching on a GPU gives the results of the CPU, to the last bit."""

import faiss
import pytest
import torch

import index.vectors
from index import Encoding, LocalSearcher
from index.errors import DeviceUnavailableError
from tests.conftest import MakeIndex, random_gaussians
from tests.rankings import assert_identical


@pytest.fixture
def faiss_gpu(cuda: torch.device) -> torch.device:
    """The CUDA device, where faiss-gpu can use it."""
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("faiss-gpu is not installed")
    return cuda


@pytest.mark.gpu
@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("top_k", [1, 10, 3000, 5005])
def test_results_on_the_gpu_are_those_of_the_cpu(
    make_index: MakeIndex, faiss_gpu: torch.device, encoding: Encoding, top_k: int
) -> None:
    # FAISS's GPU indexes give at most 2048 results per segment and query.
    documents, queries = random_gaussians(5000, 24), random_gaussians(40, 24, seed=1)
    directory = make_index(documents, encoding=encoding, segment_docs=4000)
    on_gpu, on_cpu = LocalSearcher(directory, device=str(faiss_gpu)), LocalSearcher(directory, device="cpu")
    assert on_gpu.device.type == "cuda"
    assert_identical(on_gpu.search(queries, top_k), on_cpu.search(queries, top_k))


@pytest.mark.gpu
def test_an_index_built_on_the_gpu_gives_the_results_of_one_built_on_the_cpu(
    make_index: MakeIndex, cuda: torch.device
) -> None:
    documents = random_gaussians(500, 24)
    built = [make_index(documents, name=device, device=device) for device in ("cpu", str(cuda))]
    some, others = (LocalSearcher(directory, device="cpu").search(documents[:50], 10) for directory in built)
    assert_identical(some, others)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_device_that_is_not_there_is_refused(make_index: MakeIndex, device: str) -> None:
    directory = make_index(random_gaussians(5, 3))
    with pytest.raises(DeviceUnavailableError, match=f"device {device} is not there"):
        LocalSearcher(directory, device=device)


@pytest.mark.parametrize("device", ["gpu", "mps", "meta", ""])
def test_only_cpu_and_cuda_are_devices(device: str) -> None:
    with pytest.raises(DeviceUnavailableError, match="use auto, cpu, cuda or cuda:N"):
        index.vectors.resolve_device(device)

"""Searching on a GPU gives the results of the CPU, to the last bit."""

import importlib
import threading
from collections.abc import Iterator

import faiss
import pytest
import torch

import index.vectors
from index import Encoding, LocalSearcher
from index.errors import DeviceUnavailableError
from index.vectors import FlatVectors, gpu_resources
from tests.conftest import MakeIndex, random_gaussians
from tests.rankings import assert_identical
from tests.serving import PATIENCE


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


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FlatVectors]]:
    """faiss-gpu with nothing behind it; yields the indexes that are on the device."""
    on_device: list[FlatVectors] = []

    class Copy:
        def __init__(self, index: FlatVectors) -> None:
            self.index = index
            on_device.append(index)

        def __del__(self) -> None:
            on_device.remove(self.index)

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda _, __, index: Copy(index), raising=False)
    monkeypatch.setattr(importlib, "import_module", lambda _: None)
    index.vectors._resources.cache_clear()
    yield on_device
    index.vectors._resources.cache_clear()


@pytest.mark.usefixtures("pretended_gpu")
def test_all_indexes_on_a_device_share_its_resources() -> None:
    first, second = torch.device("cuda"), torch.device("cuda:1")
    assert gpu_resources(first) is gpu_resources(torch.device("cuda:0"))
    assert gpu_resources(first) is not gpu_resources(second)
    assert gpu_resources(second).device == second


def test_an_index_is_freed_in_turn_with_searches(pretended_gpu: list[FlatVectors]) -> None:
    resources = gpu_resources(torch.device("cuda"))
    copies = [FlatVectors.preallocate(3, 5)[0].on(resources)]
    assert len(pretended_gpu) == 1
    freeing = threading.Thread(target=copies.clear)
    with resources.turn:
        freeing.start()
        freeing.join(0.1)
        assert freeing.is_alive()
        assert len(pretended_gpu) == 1
        # Whoever searches may itself be the one that frees another index.
        FlatVectors.preallocate(3, 5)[0].on(resources)
        assert len(pretended_gpu) == 1
    freeing.join(PATIENCE)
    assert pretended_gpu == []


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

"""Which build makes which approximate kind of index."""

import torch

from index.build_codes import build_codes
from index.build_factory import build_factory
from index.build_fit import CodedIndex, Fitting
from index.build_graph import build_graph
from index.build_lists import build_lists
from index.manifest import IndexKind

__all__ = ["build_approximate"]


def build_approximate(fitting: Fitting, kind: IndexKind, device: torch.device) -> CodedIndex:
    """Makes the staged segments what that kind of index scans; raises NotReachedError where it would not find
    what is asked for."""
    if kind is IndexKind.HNSW:
        return build_graph(fitting)
    if kind is IndexKind.IVF_FASTSCAN:
        return build_lists(fitting, device)
    if kind is IndexKind.FAISS:
        return build_factory(fitting)
    return build_codes(fitting)

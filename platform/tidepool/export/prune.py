"""Global magnitude pruning: the smallest weights of the whole network become zero.

One threshold for all layers together, so layers with many unneeded weights give more (Han et al. 2015, "Learning
both Weights and Connections for Efficient Neural Networks"). The zeros are stored like any other number: files get
smaller only where they are compressed.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def prune(network: torch.nn.Module, share: float) -> tuple[torch.nn.Module, float]:
    """A copy of `network` with `share` of its weights zero, and the share that is zero in fact.

    Weights are parameters of two or more axes: matrices, convolutions, embeddings. Biases, norms and buffers stay.
    """
    import torch

    pruned = copy.deepcopy(network)
    weights = [parameter for parameter in pruned.parameters() if parameter.dim() >= 2]
    total = sum(weight.numel() for weight in weights)
    count = int(share * total)
    with torch.no_grad():
        if count:
            sizes = torch.cat([weight.abs().flatten() for weight in weights])
            threshold = sizes.kthvalue(count).values
            for weight in weights:
                weight[weight.abs() <= threshold] = 0
        zeros = sum(int((weight == 0).sum()) for weight in weights)
    return pruned, zeros / total if total else 0.0

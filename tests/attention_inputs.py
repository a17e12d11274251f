"""Maps that the tests of the eager ops and of the kernels share."""

import torch

from dit_accel_kernels import BlockMap, group_by_label


def random_map(query, key, groups: tuple[int, int], density: float, seed: int = 0) -> BlockMap:
    generator = torch.Generator().manual_seed(seed)
    batch, heads = query.shape[:2]
    labels = [
        torch.randint(0, g, (batch, heads, x.shape[2]), generator=generator)
        for g, x in zip(groups, (query, key), strict=True)
    ]
    selected = torch.rand(batch, heads, *groups, generator=generator) < density
    return BlockMap(
        selected, *group_by_label(labels[0], groups[0]), *group_by_label(labels[1], groups[1])
    )

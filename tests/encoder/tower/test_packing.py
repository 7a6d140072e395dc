"""How images are shared out among runs of the tower, each of which a CUDA graph takes on a GPU."""

import pytest

from pixtral_encoder.tower.cuda_graphs import MOST_IMAGES, MOST_PATCHES, sizes
from pixtral_encoder.tower.packing import runs

SINGLES = (2048, 4096)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([4096], [[4096]]),
        ([4096, 4096, 2048], [[4096], [4096], [2048]]),
        ([16], [[16]]),
        ([2048, 16, 300, 900], [[2048], [16, 300, 900]]),
        ([1900, 1900, 1900], [[1900, 1900], [1900]]),
        ([16, 5000, 16], [[16], [5000], [16]]),
        ([16, 16, 2048], [[16, 16], [2048]]),
        ([1] * (MOST_IMAGES + 1), [[1] * MOST_IMAGES, [1]]),
    ],
)
def test_every_image_is_in_one_run_that_a_graph_takes(
    lengths: list[int], expected: list[list[int]]
) -> None:
    assert [lengths[some] for some in runs(lengths, MOST_PATCHES, MOST_IMAGES, SINGLES)] == expected


def test_every_run_has_a_graph() -> None:
    assert max(sizes()) == MOST_PATCHES
    assert sizes() == sorted(sizes())

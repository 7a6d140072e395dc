"""Divides a batch into runs. The images of a run pass through the tower together."""

from collections.abc import Collection, Iterator, Sequence


def runs(
    lengths: Sequence[int],
    most_patches: int,
    most_images: int | None = None,
    singles: Collection[int] = (),
) -> Iterator[slice]:
    """Divides a packed sequence of images of `lengths` patches into runs, one slice for each.

    A run has at most `most_patches` patches and `most_images` images. An image is a run by itself
    if its length is in `singles`, or if it has more than `most_patches` patches.
    """
    begin = patches = 0
    for at, length in enumerate(lengths):
        is_alone = length in singles or length > most_patches
        is_full = patches + length > most_patches or at - begin == most_images
        if at > begin and (is_alone or is_full):
            yield slice(begin, at)
            begin, patches = at, 0
        patches += length
        if is_alone:
            yield slice(at, at + 1)
            begin, patches = at + 1, 0
    if begin < len(lengths):
        yield slice(begin, len(lengths))

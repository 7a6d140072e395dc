"""The record of the engine's images, compared with vLLM's own caches on both sides."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pixtral_decoder.vllm_hooks import image_cache
from pixtral_decoder.vllm_hooks.image_cache import ImageCache
from tests.support.upstream import assert_still_there

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.multimodal import cache as vllm_cache
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
    from vllm.v1.engine.input_processor import InputProcessor

    from pixtral_decoder.engine.inputs import embedding_item

KIB = 1024
ROOM = 2


def item(seed: int) -> Any:
    return embedding_item(torch.full((KIB // 4,), float(seed)))


class Sides:
    """Both sides' caches, of ROOM images."""

    def __init__(self) -> None:
        room = SimpleNamespace(mm_processor_cache_gb=ROOM * KIB / (1 << 30))
        model: Any = SimpleNamespace(get_multimodal_config=lambda: room)
        # Their names have changed; what makes them has not.
        self.record: Any = _class("LruKeyReplicatedSenderCache")(model)
        self.engine: Any = _class("LruKeyReplicatedReceiverCache")(model)
        self.images = ImageCache(self.record)

    def arrive(self, names: list[str], sent: list[Any]) -> None:
        """The engine's process takes a request in."""
        features = [
            MultiModalFeatureSpec(
                data=each, modality="image", identifier=name, mm_position=PlaceholderRange(0, 1)
            )
            for name, each in zip(names, sent, strict=True)
        ]
        self.engine.get_and_update_features(features)

    def agree(self, *names: str) -> bool:
        recorded = [self.images.has(name) for name in names]
        return recorded == [name in self.engine._cache for name in names]


def _class(name: str) -> Any:
    old = {
        "LruKeyReplicatedSenderCache": "MultiModalProcessorSenderCache",
        "LruKeyReplicatedReceiverCache": "MultiModalReceiverCache",
    }[name]
    return getattr(vllm_cache, name, None) or getattr(vllm_cache, old)


@pytest.fixture
def sides() -> Sides:
    """Two images, `a` the older one."""
    sides = Sides()
    for seed, name in enumerate("ab"):
        sent = sides.images.sent([name], [item(seed)])
        assert sent is not None
        assert sent[0] is not None
        sides.arrive([name], sent)
    assert sides.agree("a", "b")
    return sides


def test_still_there() -> None:
    assert_still_there(image_cache)


def test_still_needed_while_vllms_own_way_passes_over_what_is_not_sent(sides: Sides) -> None:
    """Once this fails, `InputProcessor.inject_into_mm_cache` can take the hook's place."""
    processor: Any = SimpleNamespace(
        renderer=SimpleNamespace(
            mm_processor_cache=sides.record, update_mm_cache_stats=lambda: None
        )
    )
    names, items = ["a", "c"], [None, item(2)]
    InputProcessor.inject_into_mm_cache(processor, {"image": names}, {"image": items})
    sides.arrive(names, items)
    assert not sides.agree("a", "b", "c")


def test_both_sides_evict_the_same_image(sides: Sides) -> None:
    names = ["a", "c"]
    sent = sides.images.sent(names, [None, item(2)])
    assert sent is not None
    sides.arrive(names, sent)
    assert sides.agree("a", "b", "c")
    assert [sides.images.has(name) for name in "abc"] == [True, False, True]


def test_an_image_that_the_engine_has_is_not_sent(sides: Sides) -> None:
    assert sides.images.sent(["a", "b"], [item(0), None]) == [None, None]
    assert sides.images.sent_again("a", item(0)) is None


def test_an_image_that_neither_side_has_is_not_left_out(sides: Sides) -> None:
    assert sides.images.sent(["a", "c"], [None, None]) is None


def test_an_engine_that_caches_nothing_is_sent_all() -> None:
    one, images = item(0), ImageCache(None)
    assert images.sent(["a"], [one]) == [one]
    assert images.sent(["a"], [None]) is None
    assert images.sent_again("a", one) is one
    assert not images.has("a")

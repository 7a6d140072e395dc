import asyncio

import pytest
from prometheus_client import REGISTRY

from pixtral_core.errors import Unavailable
from pixtral_core.model.vision_spec import VisionSpec
from pixtral_gateway.upstream import replica
from pixtral_gateway.upstream.registry import under
from pixtral_gateway.upstream.replica import Contract, DecoderReplica
from tests.support.fake_tiers import FINGERPRINT, WIDTH, FakeDecoder, FakeEncoder
from tests.support.gateway_harness import eventually, watching

CONTRACT = Contract("small", FINGERPRINT, WIDTH, "f32")


def ready(tier: str) -> float:
    return REGISTRY.get_sample_value("pixtral_gateway_replicas_ready", {"tier": tier}) or 0.0


async def test_starts_with_the_first_decoder_and_without_an_encoder(
    spec: VisionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    handshake, asked = DecoderReplica.handshake, 0

    async def counted(self: DecoderReplica) -> Contract:
        nonlocal asked
        asked += 1
        return await handshake(self)

    monkeypatch.setattr(DecoderReplica, "handshake", counted)
    monkeypatch.setattr(replica, "SECONDS_BETWEEN_ATTEMPTS", 0.05)
    encoder = await FakeEncoder.started(spec)
    decoder = await FakeDecoder.started()
    await asyncio.gather(encoder.stop(), decoder.stop())
    tiers = watching([encoder], [decoder])
    starting = asyncio.create_task(tiers.start())
    await eventually(lambda: asked > 3)
    assert not starting.done()

    await decoder.start()
    await asyncio.wait_for(starting, 60)

    assert tiers.contract() == CONTRACT
    assert tiers.context_length == decoder.context_length
    assert under(tiers.encoders, CONTRACT) == {}
    await encoder.start()
    await eventually(lambda: under(tiers.encoders, CONTRACT))
    assert (ready("encoder"), ready("decoder")) == (1, 1)
    await tiers.stop()
    assert (ready("encoder"), ready("decoder")) == (0, 0)
    await asyncio.gather(encoder.stop(), decoder.stop())


async def test_only_equal_encoders_and_decoders_are_paired(
    encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    encoders[0].fingerprint = decoders[0].fingerprint = "beef"
    decoders[0].width = 2 * WIDTH
    decoders[0].context_length = 512
    tiers = watching(encoders, decoders)
    await tiers.start()
    await eventually(lambda: all(encoder.contract for encoder in tiers.encoders))

    assert tiers.contract() == CONTRACT
    assert list(under(tiers.encoders, CONTRACT)) == [encoders[1].address]
    assert list(under(tiers.decoders, CONTRACT)) == [decoders[1].address]
    await eventually(lambda: any(d.context_length == 512 for d in tiers.decoders))
    assert tiers.context_length == decoders[1].context_length
    await tiers.stop()


async def test_rolling_upgrade_serves_by_what_images_can_be_encoded_for(
    encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    for encoder in encoders:
        encoder.fingerprint = "beef"
    decoders[1].fingerprint = "beef"
    tiers = watching(encoders, decoders)
    await tiers.start()
    await eventually(lambda: all(r.contract for r in (*tiers.encoders, *tiers.decoders)))

    assert tiers.contract().fingerprint == "beef"
    await tiers.stop()


async def test_replica_that_is_lost_is_found_again(
    encoders: list[FakeEncoder], decoders: list[FakeDecoder]
) -> None:
    tiers = watching(encoders, decoders[:1])
    await tiers.start()
    (replica,) = tiers.decoders
    replica.lost()

    with pytest.raises(Unavailable):
        tiers.contract()
    await eventually(lambda: replica.contract)
    assert tiers.contract() == CONTRACT
    await tiers.stop()


async def test_without_a_decoder_there_is_no_context_to_be_too_long_for(
    encoders: list[FakeEncoder],
) -> None:
    tiers = watching(encoders, [])
    with pytest.raises(Unavailable):
        _ = tiers.context_length


async def test_a_warning_names_a_replica_that_goes_away_or_does_not_start(
    spec: VisionSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def warned() -> list[str]:
        said = "does not answer: UNAVAILABLE"
        return [each.message for each in caplog.records if each.message.endswith(said)]

    monkeypatch.setattr(replica, "SECONDS_BETWEEN_ATTEMPTS", 0.05)
    monkeypatch.setattr(replica, "STARTING_ATTEMPTS", 40)
    encoder, decoder = await FakeEncoder.started(spec), await FakeDecoder.started()
    await encoder.stop()
    tiers = watching([encoder], [decoder])
    with caplog.at_level("INFO"):
        await tiers.start()
        await eventually(lambda: "does not answer yet" in caplog.text)
        assert not warned()

        # The encoder never came; the decoder goes.
        await eventually(lambda: len(warned()) == 1)
        assert warned()[0].startswith("encoder")
        await decoder.stop()
        await eventually(lambda: len(warned()) == 2)
        assert warned()[1].startswith("decoder")
    await tiers.stop()

"""The anchor: closed-form EMA, the gradient it exerts, and that it exists in training only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from asmil.nn.anchor import divergence_per_column
from asmil.nn.attention import log_softmax, split_bags
from asmil.nn.config import AbmilConfig, AnchorConfig, AsmilConfig, ModelConfig
from asmil.nn.heads import HeadSpec
from asmil.nn.model import AnchoredModel, build_model
from tests.nn.strategies import lengths, random_batch, seeds


def small_model(anchor: AnchorConfig | None, seed: int = 0, **aggregator: Any) -> AnchoredModel:
    settings = {"tokens": 3, "heads": 2, "dropout": 0.0, "drop_rate": 0.0, **aggregator}
    config = ModelConfig(inner_dim=8, aggregator=AsmilConfig(**settings), anchor=anchor)
    model = build_model(config, 6, HeadSpec(2), seed=seed)
    with torch.no_grad():
        model.aggregator.score_path.token_Td.normal_(generator=torch.Generator().manual_seed(seed))
    return model.double()


@given(st.floats(0, 1), st.integers(1, 6), seeds)
@settings(max_examples=25, deadline=None)
def test_ema_closed_form(m: float, steps: int, seed: int) -> None:
    model = small_model(AnchorConfig(ema_factor=m, start="independent"), seed % 1000)
    model.aggregator.score_path.register_buffer("running", torch.tensor(3.0, dtype=torch.float64))
    model.anchor.path.register_buffer("running", torch.tensor(-1.0, dtype=torch.float64))
    online = model.aggregator.score_path.state_dict()
    start = {name: value.clone() for name, value in model.anchor.path.state_dict().items()}
    for _ in range(steps):
        model.update_anchor("step")
    for name, value in model.anchor.path.state_dict().items():
        expected = online[name] + m**steps * (start[name] - online[name])
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)


def test_the_anchor_starts_as_a_copy_or_independent() -> None:
    copied, independent = (small_model(AnchorConfig(start=start)) for start in ("copy", "independent"))
    online = build_model(
        ModelConfig(inner_dim=8, aggregator=AsmilConfig(tokens=3, heads=2), anchor=None), 6, HeadSpec(2), seed=0
    ).aggregator.score_path
    torch.testing.assert_close(copied.anchor.path.projection.weight.float(), online.projection.weight)
    assert not torch.allclose(independent.anchor.path.projection.weight.float(), online.projection.weight)


@pytest.mark.parametrize(("update", "moves_after"), [("step", "step"), ("epoch", "epoch")])
def test_the_anchor_moves_when_configured(update: str, moves_after: str) -> None:
    model = small_model(AnchorConfig(update=update, start="independent", ema_factor=0.5))
    before = model.anchor.path.projection.weight.clone()
    model.update_anchor("epoch" if moves_after == "step" else "step")
    torch.testing.assert_close(model.anchor.path.projection.weight, before)
    model.update_anchor(moves_after)
    assert not torch.allclose(model.anchor.path.projection.weight, before)


@given(lengths, seeds)
@settings(max_examples=25, deadline=None)
def test_gradient_of_each_divergence_is_online_minus_target(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    scores = torch.randn(int(offsets[-1]), 4, generator=generator, dtype=torch.float64, requires_grad=True)
    target = log_softmax(torch.randn(scores.shape, generator=generator, dtype=torch.float64), offsets)
    log_weights = log_softmax(scores, offsets)
    divergence_per_column(target, log_weights, offsets).sum().backward()
    torch.testing.assert_close(scores.grad, log_weights.exp().detach() - target.exp(), rtol=1e-9, atol=1e-12)


def test_anchor_loss_is_the_mean_over_tokens_and_heads_of_the_kl() -> None:
    model = small_model(AnchorConfig(start="independent"))
    batch = random_batch([4, 1, 7], seed=5)
    batch = batch.with_features(batch.features_MD.double())
    output = model(batch)
    target = model.anchor.log_weights(batch, output.log_weights_MK)
    expected = []
    for log_target, log_p in zip(
        split_bags(target, batch.offsets), split_bags(output.log_weights_MK, batch.offsets), strict=True
    ):
        expected.append((log_target.exp() * (log_target - log_p)).sum(dim=0).mean())
    torch.testing.assert_close(model.anchor_loss(output, batch), torch.stack(expected))


def test_kept_tokens_only_enter_the_loss_if_configured() -> None:
    batch = random_batch([5, 3], seed=1, seeded=True)
    batch = batch.with_features(batch.features_MD.double())
    losses = {}
    for tokens in ("all", "kept"):
        model = small_model(
            AnchorConfig(start="independent", kl_tokens=tokens), drop_rate=0.5, drop_mode="exact"
        ).train()
        output = model(batch)
        losses[tokens] = model.anchor_loss(output, batch)
        kept = output.readout.kept_BT
        columns = divergence_per_column(
            model.anchor.log_weights(batch, output.log_weights_MK), output.log_weights_MK, output.offsets
        ).view(2, 2, 3)
    expected = torch.stack([columns[bag][:, kept[bag]].mean() for bag in range(2)])
    torch.testing.assert_close(losses["kept"], expected)
    assert not torch.allclose(losses["kept"], losses["all"])


def test_no_gradient_reaches_the_anchor_and_it_stays_in_evaluation_mode() -> None:
    model = small_model(AnchorConfig()).train()
    batch = random_batch([3], seed=2)
    batch = batch.with_features(batch.features_MD.double())
    model.anchor_loss(model(batch), batch).sum().backward()
    assert not model.anchor.training
    assert not any(p.requires_grad or p.grad is not None for p in model.anchor.parameters())


def test_entmax_anchor_with_zero_weights_is_finite() -> None:
    model = small_model(AnchorConfig(start="independent", normalizer="entmax", alpha=2.0, temperature=0.01))
    batch = random_batch([30], seed=5)
    batch = batch.with_features(batch.features_MD.double())
    output = model(batch)
    target = model.anchor.log_weights(batch, output.log_weights_MK).exp()
    assert (target == 0).any()
    expected = (torch.xlogy(target, target) - target * output.log_weights_MK).sum(dim=0).mean()
    torch.testing.assert_close(model.anchor_loss(output, batch)[0], expected)


@pytest.mark.parametrize("aggregator", [AsmilConfig(tokens=3, heads=2), AbmilConfig(hidden=4)])
def test_inference_never_evaluates_the_anchor(aggregator: AsmilConfig | AbmilConfig) -> None:
    batch = random_batch([9, 4], seed=4)
    flops, outputs = [], []
    for anchor in (None, AnchorConfig()):
        model = build_model(
            ModelConfig(inner_dim=8, aggregator=aggregator, anchor=anchor), 6, HeadSpec(2), seed=3
        ).eval()
        with FlopCounterMode(display=False) as counter:
            outputs.append(model(batch).logits_BC)
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0
    assert torch.equal(outputs[0], outputs[1])


def test_temporal_target_is_the_ema_of_past_attention() -> None:
    model = small_model(AnchorConfig(target="temporal", gamma=0.75)).train()
    batch = random_batch([4, 2], seed=6)
    batch = batch.with_features(batch.features_MD.double())
    first = model(batch)
    torch.testing.assert_close(model.anchor_loss(first, batch), torch.zeros(2, dtype=torch.float64))
    with torch.no_grad():
        model.aggregator.score_path.token_Td.add_(0.7)
    second = model(batch)
    before, now = first.log_weights_MK.detach(), second.log_weights_MK.detach()
    expected = divergence_per_column(before, now, batch.offsets).mean(dim=1)
    torch.testing.assert_close(model.anchor_loss(second, batch), expected)
    torch.testing.assert_close(
        torch.cat([model.anchor.memory["bag0"], model.anchor.memory["bag1"]]), 0.75 * before.exp() + 0.25 * now.exp()
    )
    restored = small_model(AnchorConfig(target="temporal"))
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored.anchor.memory["bag1"], model.anchor.memory["bag1"])

"""ASMIL's aggregator against its per-token definition, and its invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from asmil.bags import Bag, BagBatch
from asmil.errors import ConfigError
from asmil.nn.aggregators.asmil import AsmilAggregator, keep_tokens
from asmil.nn.config import AbmilConfig, AnchorConfig, AsmilConfig, ModelConfig
from asmil.nn.heads import HeadSpec
from asmil.nn.model import AnchoredModel, attention_maps, auto_inner_dim, build_model
from tests.nn.strategies import lengths, random_batch, seeds, single

SMALL = {"tokens": 3, "heads": 2, "dropout": 0.3, "drop_rate": 0.5}
CONFIGS = [
    AsmilConfig(**SMALL),
    AsmilConfig(**SMALL, normalizer="nsf"),
    AsmilConfig(**SMALL, normalizer="mixture"),
    AsmilConfig(**SMALL, tokens_as_keys=True, drop_mode="exact"),
    AbmilConfig(hidden=4),
    AbmilConfig(hidden=4, gated=False),
]


def made(config: AsmilConfig | AbmilConfig, **anchor: Any) -> AnchoredModel:
    model = build_model(
        ModelConfig(inner_dim=8, aggregator=config, anchor=AnchorConfig(start="independent", **anchor)),
        6,
        HeadSpec(2),
        seed=1,
    )
    if isinstance(config, AsmilConfig):
        with torch.no_grad():
            model.aggregator.score_path.token_Td.normal_(generator=torch.Generator().manual_seed(0))
    return model.double()


def doubled(batch: BagBatch) -> BagBatch:
    return batch.with_features(batch.features_MD.double())


def per_token_form(aggregator: AsmilAggregator, features_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition: keys and values of every instance for every token, one query each."""
    path, readout, heads = aggregator.score_path, aggregator.token_readout, aggregator.config.heads
    h = F.relu(features_ND @ path.projection.weight.T)
    dim, scores, tokens = h.shape[1], [], []
    for t in range(aggregator.tokens):
        query = path.query_weight_Tdd[t] @ path.token_Td[t] + path.query_bias_Td[t]
        keys = h @ path.key_weight_Tdd[t].T + path.key_bias_Td[t]
        values = h @ readout.value_weight_Tdd[t].T + readout.value_bias_Td[t]
        parts = []
        for part in range(heads):
            cut = slice(part * dim // heads, (part + 1) * dim // heads)
            s = keys[:, cut] @ query[cut] / math.sqrt(dim // heads)
            scores.append((part, t, s))
            parts.append(s.softmax(dim=0) @ values[:, cut])
        out = torch.cat(parts) @ readout.out_weight_Tdd[t].T + readout.out_bias_Td[t]
        tokens.append(F.layer_norm(out, (dim,), readout.norm_weight_Td[t], readout.norm_bias_Td[t], eps=1e-6))
    in_order = [s for _, _, s in sorted(scores, key=lambda entry: entry[:2])]
    return torch.stack(in_order, dim=1), torch.stack(tokens)


def test_fast_form_equals_the_per_token_definition() -> None:
    model = made(AsmilConfig(**SMALL)).eval()
    batch = doubled(random_batch([11], seed=3))
    scores, tokens = per_token_form(model.aggregator, batch.features_MD)
    output = model(batch)
    torch.testing.assert_close(output.scores_MK, scores, rtol=1e-10, atol=1e-12)
    expected = model.aggregator.head(model.aggregator.bag_encoder(tokens[None], None, None))
    torch.testing.assert_close(output.logits_BC, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS)
@given(sizes=lengths, seed=seeds)
@settings(max_examples=8, deadline=None)
def test_a_batch_equals_its_bags_one_by_one_in_training_mode(
    config: AsmilConfig | AbmilConfig, sizes: list[int], seed: int
) -> None:
    model = made(config).train()
    batch = doubled(random_batch(sizes, seed, seeded=True))
    together = model(batch)
    divergence = model.anchor_loss(together, batch)
    for index in range(len(sizes)):
        alone = single(batch, index)
        output = model(alone)
        torch.testing.assert_close(output.logits_BC[0], together.logits_BC[index], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(model.anchor_loss(output, alone)[0], divergence[index], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("config", CONFIGS)
@given(sizes=lengths, seed=seeds)
@settings(max_examples=8, deadline=None)
def test_the_order_of_instances_does_not_matter(config: AsmilConfig | AbmilConfig, sizes: list[int], seed: int) -> None:
    model = made(config).eval()
    batch = doubled(random_batch(sizes, seed))
    order = torch.cat([start + torch.randperm(n) for n, start in zip(sizes, batch.offsets[:-1].tolist(), strict=True)])
    shuffled = batch.with_features(batch.features_MD[order])
    plain, moved = model(batch), model(shuffled)
    torch.testing.assert_close(moved.logits_BC, plain.logits_BC, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(
        model.anchor_loss(moved, shuffled), model.anchor_loss(plain, batch), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("config", CONFIGS)
def test_no_gradient_crosses_bags(config: AsmilConfig | AbmilConfig) -> None:
    model = made(config).train()
    batch = doubled(random_batch([3, 4, 2], seed=9, seeded=True))
    features = batch.features_MD.clone().requires_grad_()
    batch = batch.with_features(features)
    output = model(batch)
    (output.logits_BC[1].sum() + model.anchor_loss(output, batch)[1]).backward()
    assert features.grad[3:7].abs().sum() > 0
    assert features.grad[:3].abs().sum() == 0
    assert features.grad[7:].abs().sum() == 0


@pytest.mark.parametrize("config", CONFIGS)
def test_one_instance_equal_instances_and_float16_features_are_finite(config: AsmilConfig | AbmilConfig) -> None:
    model = made(config).float().train()
    bags = [Bag("one", torch.randn(1, 6)), Bag("same", torch.ones(5, 6)), Bag("large", 1000 * torch.randn(4, 6))]
    batch = BagBatch.pack(bags, seeds=[1, 2, 3])
    batch = batch.with_features(batch.features_MD.half())
    output = model(batch)
    loss = output.logits_BC.square().sum() + model.anchor_loss(output, batch).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.aggregator.parameters() if p.grad is not None)


@pytest.mark.parametrize("config", [AsmilConfig(tokens=3, heads=2, dropout=0, drop_rate=0), AbmilConfig(hidden=4)])
def test_mixed_precision_keeps_scores_in_float32_and_stays_close(config: AsmilConfig | AbmilConfig) -> None:
    model = made(config).float()
    batch = random_batch([40, 3], seed=0)
    exact = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(batch)
    assert mixed.scores_MK.dtype == torch.float32
    assert not torch.equal(mixed.scores_MK, mixed.scores_MK.bfloat16().float())
    assert mixed.log_weights_MK.dtype == torch.float32
    torch.testing.assert_close(mixed.logits_BC.float(), exact.logits_BC, rtol=0.05, atol=0.05)


@given(st.floats(0, 1), seeds, st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_token_drop_keeps_at_least_one_and_the_right_number(rate: float, seed: int, tokens: int) -> None:
    uniform = torch.rand(50, tokens, generator=torch.Generator().manual_seed(seed))
    assert keep_tokens(uniform, drop_rate=rate, exact=False).any(dim=1).all()
    kept = keep_tokens(uniform, drop_rate=rate, exact=True).sum(dim=1)
    assert (kept == tokens - min(math.floor(rate * tokens + 0.5), tokens - 1)).all()


def test_bernoulli_drop_rate_and_the_survivor_is_uniform() -> None:
    uniform = torch.rand(40_000, 4, generator=torch.Generator().manual_seed(0))
    kept = keep_tokens(uniform, drop_rate=0.5, exact=False)
    expected = (0.5 * 4 + 0.5**4) / 4
    assert kept.double().mean() == pytest.approx(expected, abs=0.005)
    survivors = keep_tokens(uniform, drop_rate=1.0, exact=False).double().mean(dim=0)
    torch.testing.assert_close(survivors, torch.full((4,), 0.25, dtype=torch.float64), atol=0.01, rtol=0)


def test_dropped_tokens_reach_neither_embedding_nor_gradient() -> None:
    model = made(AsmilConfig(tokens=4, heads=2, dropout=0, drop_rate=0.5, drop_mode="exact")).train()
    batch = doubled(random_batch([6], seed=2, seeded=True))
    output = model(batch)
    output.logits_BC.sum().backward()
    gradient = model.aggregator.token_readout.value_weight_Tdd.grad.abs().sum(dim=(1, 2))
    assert torch.equal(gradient > 0, output.readout.kept_BT[0])


def test_noise_of_a_bag_depends_on_its_seed_alone_and_stops_at_inference() -> None:
    model = made(AsmilConfig(**SMALL)).train()
    batch = doubled(random_batch([5, 6], seed=0, seeded=True))
    assert torch.equal(model(batch).logits_BC, model(batch).logits_BC)
    other = BagBatch(batch.bag_ids, batch.features_MD, batch.offsets, seeds_B=batch.seeds_B + 17)
    assert not torch.allclose(model(batch).logits_BC, model(other).logits_BC)
    model.eval()
    assert torch.equal(model(batch).logits_BC, model(other).logits_BC)


def test_attention_maps_hold_instances_only() -> None:
    model = made(AsmilConfig(**SMALL, tokens_as_keys=True)).eval()
    maps = attention_maps(model(doubled(random_batch([4, 2], seed=0))))
    assert [map_NK.shape for map_NK in maps] == [(4, 6), (2, 6)]
    for map_NK in maps:
        torch.testing.assert_close(map_NK.sum(dim=0), torch.ones(6))


@pytest.mark.parametrize("config", [AsmilConfig(**SMALL), AbmilConfig(hidden=4)])
def test_what_softmax_ignores_takes_no_gradient(config: AsmilConfig | AbmilConfig) -> None:
    """Adam would turn its rounding noise into steps, and the anchor's sigmoid does not ignore it."""
    model = made(config).train()
    batch = doubled(random_batch([5, 6], seed=0, seeded=True))
    output = model(batch)
    (output.logits_BC.sum() + model.anchor_loss(output, batch).sum()).backward()
    without = [name for name, parameter in model.aggregator.named_parameters() if parameter.grad is None]
    ignored = "score_path.key_bias_Td" if isinstance(config, AsmilConfig) else "score_path.attention.score.bias"
    assert without == [ignored]


def test_weights_depend_on_the_seed_alone() -> None:
    config = ModelConfig(inner_dim=8, aggregator=AsmilConfig(tokens=2, heads=2))
    state = torch.random.get_rng_state()
    first, second, third = (build_model(config, 6, HeadSpec(2), seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["aggregator.head.weight"], third["aggregator.head.weight"])


def test_inner_dim_rule_and_its_refusal() -> None:
    widths = {384: 128, 512: 256, 768: 384, 1024: 512, 1536: 768, 166: 128, 230: 128, 2048: 768, 640: 320}
    assert {width: auto_inner_dim(width) for width in widths} == widths
    with pytest.raises(ConfigError, match=r"model\.aggregator\.heads: got 5.*inner width 128"):
        build_model(ModelConfig(aggregator=AsmilConfig(heads=5)), 166, HeadSpec(2), seed=0)

"""ASMIL as published: weights, scores, losses, gradients and training steps of the authors' own modules.

Cases are discovered in the fixture files; the folder is `ASMIL_GOLDEN`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from asmil.bags import Bag, BagBatch
from asmil.errors import ConfigError
from asmil.nn.anchor import divergence_per_column
from asmil.nn.attention import log_nsf
from asmil.nn.reference import ReferenceModel, from_reference
from tests.conftest import REPOSITORY

FOLDER = Path(os.environ.get("ASMIL_GOLDEN", REPOSITORY.parent / "shared" / "golden" / "models")) / "asmil"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"golden folder {FOLDER} is absent (set ASMIL_GOLDEN)")

FIXTURES = sorted(FOLDER.glob("*.json"))
BAG_SEED = 20240
"""The fixture's bags are successive draws of one generator with this seed; `Fixture.bag` checks that."""


class Fixture:
    def __init__(self, path: Path) -> None:
        self.facts = json.loads(path.read_text())
        self.tensors = load_file(path.with_suffix(".safetensors"))
        self.heads = self.facts["reference"]["constructor"]["heads"]

    def part(self, prefix: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.to(dtype) for k, v in self.tensors.items() if k.startswith(prefix)}

    def model(self, dtype: torch.dtype = torch.float32, temperature: float = 1.0, **settings: Any) -> ReferenceModel:
        return from_reference(
            "asmil",
            self.part("state/", dtype),
            heads=self.heads,
            anchor_state=self.part("anchor/", dtype),
            temperature=temperature,
            **settings,
        )

    def bag(self, length: int) -> Tensor:
        """The bag of a length: stored, or drawn again as the stored ones were."""
        stored = self.tensors.get(f"case/n{length}/input")
        if stored is not None:
            return stored
        generator = torch.Generator().manual_seed(BAG_SEED)
        for drawn in (1, 7, 64, 500):
            features = torch.randn(drawn, 32, generator=generator)
            if drawn == length:
                return features
            assert torch.equal(features, self.tensors[f"case/n{drawn}/input"])
        pytest.skip(f"the fixture has no bag of {length} instances")


def cases() -> list[Any]:
    found = []
    for path in FIXTURES:
        for name, case in json.loads(path.read_text())["cases"].items():
            if "total" in case:
                found.append(pytest.param(path, name, id=f"{path.stem}-{name}"))
    return found


def batch_of(features: Tensor) -> BagBatch:
    return BagBatch.pack([Bag("bag", features)])


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((actual - expected).detach().abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize(("path", "name"), cases())
def test_outputs(path: Path, name: str) -> None:
    fixture = Fixture(path)
    reference = fixture.model()
    features = fixture.tensors[f"case/{name}/input"]
    length = len(features)
    output = reference(features)
    stored = {k.removeprefix(f"case/{name}/"): v for k, v in fixture.tensors.items() if k.startswith(f"case/{name}/")}
    torch.testing.assert_close(output.logits, stored["slide_logits"], atol=2e-6, rtol=0)
    torch.testing.assert_close(output.embedding, stored["bag_embedding"], atol=2e-6, rtol=0)
    assert_relative(output.scores, stored["scores"].reshape(-1, length), 2e-5)
    batch = batch_of(features)
    model = reference.model
    _, anchor_scores = model.anchor.scores(batch)
    assert_relative(anchor_scores.T, stored["anchor_scores"].reshape(-1, length), 2e-5)
    log_weights = model(batch).log_weights_MK
    torch.testing.assert_close(log_weights.exp().T, stored["attention_softmax"].reshape(-1, length), atol=2e-6, rtol=0)
    temperature = fixture.facts["cases"][name]["temp"]
    nsf = log_nsf(anchor_scores, batch.offsets, temperature=temperature, eps=1e-8).exp()
    torch.testing.assert_close(nsf.T, stored["anchor_nsf"].reshape(-1, length), atol=2e-6, rtol=0)


def losses(reference: ReferenceModel, features: Tensor, label: int) -> tuple[Tensor, Tensor]:
    batch = batch_of(features)
    output = reference.model(batch)
    ce = F.cross_entropy(output.logits_BC, torch.tensor([label]))
    divergence = reference.model.anchor_loss(output, batch)
    assert divergence is not None
    return ce, divergence[0]


@pytest.mark.parametrize(("path", "name"), cases())
def test_losses(path: Path, name: str) -> None:
    fixture = Fixture(path)
    case = fixture.facts["cases"][name]
    features = fixture.tensors[f"case/{name}/input"]
    ce, kd = losses(fixture.model(temperature=case["temp"]), features, case["label"])
    assert ce.item() == pytest.approx(case["ce"], abs=2e-6)
    assert kd.item() == pytest.approx(case["kd"], abs=2e-6)
    for temperature, value in case["kd_by_temp"].items():
        _, kd = losses(fixture.model(temperature=float(temperature)), features, case["label"])
        assert kd.item() == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize(("path", "name"), cases())
def test_summed_divergences(path: Path, name: str) -> None:
    fixture = Fixture(path)
    case = fixture.facts["cases"][name]
    reference, batch = fixture.model(temperature=case["temp"]), batch_of(fixture.tensors[f"case/{name}/input"])
    log_weights = reference.model(batch).log_weights_MK
    target = reference.model.anchor.log_weights(batch, log_weights)
    kl = divergence_per_column(target, log_weights, batch.offsets).mean()
    cross_entropy = divergence_per_column(target, log_weights, batch.offsets, reduction="instance_mean").mean()
    assert kl.item() == pytest.approx(case["kl_sum_over_N_mean_over_heads_tokens"], abs=2e-6)
    expected = case["ce_sum_over_N_mean_over_heads_tokens"] / batch.num_instances
    assert cross_entropy.item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("path", "name"), cases())
def test_float64(path: Path, name: str) -> None:
    fixture = Fixture(path)
    case = fixture.facts["cases"][name]
    stored = fixture.tensors.get(f"case/{name}/slide_logits.f64")
    if stored is None:
        pytest.skip("the fixture has no float64 values for this case")
    features = fixture.tensors[f"case/{name}/input"].double()
    reference = fixture.model(torch.float64, temperature=case["temp"])
    torch.testing.assert_close(reference(features).logits, stored, atol=1e-9, rtol=0)
    ce, kd = losses(reference, features, case["label"])
    assert ce.item() == pytest.approx(case["ce_f64"], abs=1e-9)
    assert kd.item() == pytest.approx(case["kd_f64"], abs=1e-9)


@pytest.mark.parametrize(("path", "name"), cases())
def test_input_gradient(path: Path, name: str) -> None:
    fixture = Fixture(path)
    case = fixture.facts["cases"][name]
    expected = fixture.tensors.get(f"case/{name}/grad_input")
    if expected is None:
        pytest.skip("the fixture has no input gradient for this case")
    features = fixture.tensors[f"case/{name}/input"].clone().requires_grad_()
    ce, kd = losses(fixture.model(temperature=case["temp"]), features, case["label"])
    (ce + kd).backward()
    assert_relative(features.grad, expected, 1e-5)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parameter_gradients(path: Path) -> None:
    """Sum, L2 norm, largest magnitude and a dot product of every parameter's gradient."""
    fixture = Fixture(path)
    for name, case in fixture.facts["cases"].items():
        fingerprints = case.get("param_grad_fingerprint")
        if fingerprints is None:
            continue
        reference = fixture.model(temperature=case["temp"], dropout=0.0).train()
        ce, kd = losses(reference, fixture.tensors[f"case/{name}/input"], case["label"])
        (ce + kd).backward()
        aggregator = reference.model.aggregator
        stacks = {
            "q_proj": (aggregator.score_path.query_weight_Tdd, aggregator.score_path.query_bias_Td),
            "k_proj": (aggregator.score_path.key_weight_Tdd, None),
            "v_proj": (aggregator.token_readout.value_weight_Tdd, aggregator.token_readout.value_bias_Td),
            "out_proj": (aggregator.token_readout.out_weight_Tdd, aggregator.token_readout.out_bias_Td),
        }
        for token in range(aggregator.tokens):
            for theirs, (weight, bias) in stacks.items():
                for kind, parameter in (("weight", weight), ("bias", bias)):
                    if parameter is None:
                        continue
                    expected = fingerprints[f"sub_attention.{token}.{theirs}.{kind}"]
                    gradient = parameter.grad[token].double().flatten()
                    dot = gradient @ torch.cos(0.37 * torch.arange(len(gradient), dtype=torch.float64))
                    actual = [gradient.sum(), gradient.norm(), gradient.abs().max(), dot]
                    scale = expected[1]
                    assert [float(a) for a in actual] == pytest.approx(expected, abs=1e-5 * scale + 1e-8)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_training_mode_with_given_dropped_tokens(path: Path) -> None:
    fixture = Fixture(path)
    for name, case in fixture.facts["cases"].items():
        if "dropped_tokens" not in case:
            continue
        features = fixture.tensors[f"case/{name.split('_')[0]}/input"]
        model = fixture.model(dropout=0.0).model
        encoded = model.aggregator.score_path.encode(batch_of(features))
        scores = model.aggregator.score_path.scores(encoded)
        weights = model.aggregator.log_weights(scores, encoded.offsets).exp()
        pooled = torch.stack([weights.T @ encoded.features_MD])
        kept = torch.tensor([[token in case["kept_tokens"] for token in range(model.aggregator.tokens)]])
        tokens = model.aggregator.token_readout(pooled, None)
        logits = model.aggregator.head(model.aggregator.bag_encoder(tokens, kept, None))
        torch.testing.assert_close(logits, fixture.tensors[f"case/{name}/slide_logits"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
@pytest.mark.parametrize("trajectory", ["trajectory_as_shipped", "trajectory_ema_guard_removed"])
def test_training_trajectory(path: Path, trajectory: str) -> None:
    """Our pieces in the script's order: forward, anchor forward, EMA of the pre-step weights, loss, clip, AdamW."""
    fixture = Fixture(path)
    case = fixture.facts["cases"].get(trajectory)
    if case is None:
        pytest.skip("the fixture has no such trajectory")
    guard = trajectory == "trajectory_as_shipped"
    settings = {
        "dropout": 0.0,
        "ema_factor": 1.0 if guard else 0.999,
        "temperature": fixture.facts["cases"]["n64"]["temp"],
    }
    labels = {1: 0, 7: 1, 64: 2, 500: 1}
    model = fixture.model(**settings).model.train()
    start = {k: v.clone() for k, v in model.anchor.path.state_dict().items()}
    optimizer = torch.optim.AdamW(model.aggregator.parameters(), lr=1e-4, weight_decay=1e-5)
    for length, lr, expected in zip(case["order"], case["lr_per_step"], case["total_loss"], strict=True):
        optimizer.param_groups[0]["lr"] = lr
        batch = batch_of(fixture.bag(length))
        output = model(batch)
        kd = model.anchor_loss(output, batch)
        model.update_anchor("step")
        loss = F.cross_entropy(output.logits_BC, torch.tensor([labels[length]])) + kd[0]
        assert loss.item() == pytest.approx(expected, abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.aggregator.parameters(), 5.0)
        optimizer.step()
    model.eval()
    final = model(batch_of(fixture.bag(64))).logits_BC
    torch.testing.assert_close(final, fixture.tensors[f"case/{trajectory}/final_slide_logits_n64"], atol=1e-5, rtol=0)
    moved = max(
        float((v - start[k]).abs().max()) for k, v in model.anchor.path.state_dict().items() if k != "key_bias_Td"
    )
    if guard:
        assert moved == 0
    torch.testing.assert_close(
        model.anchor.path.token_Td, fixture.tensors[f"case/{trajectory}/anchor_q"][0], atol=1e-5, rtol=0
    )


def test_unknown_method_missing_tensor_and_wrong_setting() -> None:
    fixture = Fixture(FIXTURES[0])
    state = fixture.part("state/")
    with pytest.raises(ConfigError, match="unknown method 'asmill'; known: asmil"):
        from_reference("asmill", state)
    with pytest.raises(ConfigError, match="no tensor 'cls'"):
        from_reference("asmil", {name: value for name, value in state.items() if name != "cls"})
    with pytest.raises(ConfigError, match="expected 55 tensors for 4 tokens, got 56"):
        from_reference("asmil", {**state, "extra": torch.zeros(1)})
    with pytest.raises(ConfigError, match="token_count"):
        from_reference("asmil", state, token_count=4)

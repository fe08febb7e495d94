"""Survival losses against stored reference values, published formulas and brute-force sums."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asmil.nn.losses import hazard_loss, incidence_loss

MODES = ("end_clamp", "end_drop", "tail", "start")


@pytest.fixture(scope="module")
def stable(shared: Path) -> dict:
    return json.loads((shared / "golden/survival/reference_stable_forms.json").read_text())


@pytest.fixture(scope="module")
def published(shared: Path) -> dict:
    return json.loads((shared / "golden/survival/losses_small.json").read_text())


def loss_of(name: str, logits_BK: Tensor, bin_B: Tensor, event_B: Tensor) -> Tensor:
    """The loss that a key of the stored stable forms stands for, such as `pmf.tail` or `hazard.alpha0.4`."""
    head, _, setting = name.partition(".")
    if head == "pmf":
        return incidence_loss(logits_BK, bin_B, event_B, mode=setting)
    return hazard_loss(logits_BK, bin_B, event_B, alpha=float(setting.removeprefix("alpha")))


def tensors(inputs: dict) -> tuple[Tensor, Tensor, Tensor]:
    logits_BK = torch.tensor(inputs["logits"], dtype=torch.float64, requires_grad=True)
    return logits_BK, torch.tensor(inputs["t"]), torch.tensor(inputs["e"])


def assert_close(actual: Tensor, expected: object, tolerance: float) -> None:
    stored = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), stored, rtol=tolerance, atol=tolerance)


def test_every_stored_stable_form_with_its_gradient(stable: dict) -> None:
    checked = 0
    for part, inputs in (("small", stable["inputs"]), ("extreme", stable["extreme"])):
        for name, expected in stable[part].items():
            if not isinstance(expected, dict) or "per_sample" not in expected:
                continue
            logits_BK, bin_B, event_B = tensors(inputs)
            loss_B = loss_of(name, logits_BK, bin_B, event_B)
            (grad_BK,) = torch.autograd.grad(loss_B.mean(), logits_BK)
            assert_close(loss_B, expected["per_sample"], 1e-9)
            assert_close(loss_B.mean(), expected["mean"], 1e-9)
            assert_close(grad_BK, expected["grad_of_mean"], 1e-9)
            checked += 1
    assert checked >= 11


PUBLISHED = {
    "VLSA.SurvIFMLE": lambda z, y, e, alpha: incidence_loss(z, y, e, mode="end_clamp", alpha=alpha),
    "VLSA.SurvMLE": lambda z, y, e, alpha: hazard_loss(z, y, e, alpha=alpha),
    "MCAT.nll_loss": lambda z, y, e, alpha: hazard_loss(z, y, e, alpha=alpha),
    "PORPOISE.nll_loss": lambda z, y, e, alpha: hazard_loss(z, y, e, alpha=alpha),
    "SurvPath.nll_loss": lambda z, y, e, alpha: hazard_loss(z, y, e, alpha=alpha),
    "pycox.nll_logistic_hazard": lambda z, y, e, alpha: hazard_loss(z, y, e),
    "pycox.nll_pmf": lambda z, y, e, alpha: incidence_loss(z, y, e, mode="tail"),
}
REDUCTIONS = {"mean": Tensor.mean, "sum": Tensor.sum, "none": lambda loss_B: loss_B}


def test_the_published_losses_with_their_gradients(published: dict) -> None:
    checked = set()
    for name, expected in published["values"].items():
        family = next((key for key in PUBLISHED if name.startswith(key + ".")), None)
        if family is None or "without_row5" in name:
            continue
        parts = name.removeprefix(family + ".").split(".")
        alpha = float(".".join(parts[:2]).removeprefix("alpha")) if parts[0].startswith("alpha") else 0.0
        reduction = next((REDUCTIONS[part] for part in parts if part in REDUCTIONS), Tensor.mean)
        logits_BK, bin_B, event_B = tensors(published["inputs"])
        value = reduction(PUBLISHED[family](logits_BK, bin_B, event_B, alpha))
        tolerance = 5e-6 if name.endswith("f32") else 1e-9 if name.endswith("epsilon0") else 1e-6
        tolerance *= len(bin_B) if "sum" in parts else 1
        assert_close(value, expected["loss"], tolerance)
        if "grad" in expected:
            (grad_BK,) = torch.autograd.grad(value, logits_BK)
            assert_close(grad_BK, expected["grad"], tolerance)
        checked.add(family)
    assert checked == set(PUBLISHED)


def test_without_the_patient_censored_in_the_last_bin_every_end_mode_agrees(published: dict) -> None:
    expected = published["values"]["VLSA.SurvIFMLE.alpha0.0.mean.without_row5"]
    kept = torch.arange(8) != 5
    for mode in ("end_clamp", "end_drop"):
        logits_BK, bin_B, event_B = tensors(published["inputs"])
        loss = incidence_loss(logits_BK[kept], bin_B[kept], event_B[kept], mode=mode).mean()
        (grad_BK,) = torch.autograd.grad(loss, logits_BK)
        assert_close(loss, expected["loss"], 1e-6)
        assert_close(grad_BK, expected["grad"], 1e-6)


@st.composite
def patients(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, bins and events of up to six patients over up to five bins; ties and all-censored sets included."""
    count, bins = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    logits = draw(st.lists(st.lists(st.floats(-8, 8), min_size=bins, max_size=bins), min_size=count, max_size=count))
    bin_B = draw(st.lists(st.integers(0, bins - 1), min_size=count, max_size=count))
    event_B = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    return torch.tensor(logits, dtype=torch.float64), torch.tensor(bin_B), torch.tensor(event_B)


@given(patients(), st.sampled_from(MODES))
@settings(max_examples=60, deadline=None)
def test_incidence_likelihood_is_the_sum_of_the_agreeing_bins(drawn: tuple[Tensor, Tensor, Tensor], mode: str) -> None:
    logits_BK, bin_B, event_B = drawn
    loss = incidence_loss(logits_BK, bin_B, event_B, mode=mode).tolist()
    for row, own, event, value in zip(logits_BK.tolist(), bin_B.tolist(), event_B.tolist(), loss, strict=True):
        masses = torch.tensor([*row, 0.0] if mode == "tail" else row, dtype=torch.float64).softmax(0).tolist()
        likelihood = masses[own] if event else sum(masses[own if mode == "start" else own + 1 :])
        if mode == "end_clamp":
            likelihood = max(likelihood, 1e-7)
        expected = 1.0 if likelihood == 0 and mode == "end_drop" else likelihood
        assert torch.tensor(value).neg().exp().item() == pytest.approx(expected, rel=1e-5)


@given(patients())
@settings(max_examples=40, deadline=None)
def test_hazard_likelihood_is_the_product_over_passed_bins(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    logits_BK, bin_B, event_B = drawn
    hazards, loss = logits_BK.sigmoid().tolist(), hazard_loss(logits_BK, bin_B, event_B).tolist()
    for row, own, event, value in zip(hazards, bin_B.tolist(), event_B.tolist(), loss, strict=True):
        likelihood = row[own] if event else 1 - row[own]
        for hazard in row[:own]:
            likelihood *= 1 - hazard
        assert value == pytest.approx(-torch.tensor(likelihood, dtype=torch.float64).log().item(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_flipping_the_event_changes_the_loss(mode: str) -> None:
    logits_BK, bin_B = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1])
    losses = {incidence_loss(logits_BK, bin_B, torch.tensor([event]), mode=mode).item() for event in (0, 1)}
    assert len(losses) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_logits_give_a_finite_float32_loss_and_gradient(mode: str, dtype: torch.dtype) -> None:
    logits_BK = torch.tensor([[1000.0, -1000.0, 0.0], [-1000.0, 0.0, 1000.0]], dtype=dtype, requires_grad=True)
    for event in (0, 1):
        for own in (0, 1, 2):
            bin_B, event_B = torch.full((2,), own), torch.full((2,), event)
            for loss in (partial(incidence_loss, mode=mode), hazard_loss):
                loss_B = loss(logits_BK, bin_B, event_B)
                (grad_BK,) = torch.autograd.grad(loss_B.sum(), logits_BK)
                assert loss_B.dtype == torch.float32
                assert loss_B.isfinite().all()
                assert grad_BK.isfinite().all()


def test_alpha_weighs_censored_patients_only() -> None:
    logits_BK = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    bin_B, event_B = torch.tensor([0, 1, 0, 1]), torch.tensor([1, 1, 0, 0])
    for loss in (incidence_loss, hazard_loss):
        plain, weighted = loss(logits_BK, bin_B, event_B), loss(logits_BK, bin_B, event_B, alpha=0.25)
        torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 1.0, 0.75, 0.75]))

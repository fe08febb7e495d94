"""`step` and `memory`: the training step of ASMIL against the per-token form and gated ABMIL, and its peak memory."""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asmil.bags import Bag, BagBatch
from asmil.engine.config import TrainConfig
from asmil.engine.optim import build_optimizer
from asmil.nn.aggregators.asmil import AsmilAggregator
from asmil.nn.anchor import EmaAnchor
from asmil.nn.config import AbmilConfig, AnchorConfig, AsmilConfig, ModelConfig
from asmil.nn.heads import HeadSpec
from asmil.nn.model import AnchoredModel, build_model

__all__ = ["PerTokenAsmil", "memory_row", "peak_memory", "step_rows"]

LENGTHS = (100, 1_000, 10_000, 40_000)
MEMORY_LENGTH, MEMORY_WIDTH = 100_000, 1_024


class PerTokenAsmil(nn.Module):
    """ASMIL written as it is usually described: each token projects all instances to its own keys and values.

    Takes the parameters of a model in the fast form, so that both compute the same function.

    Args:
        model: The model to share parameters with; its anchor must be an EMA anchor.
    """

    def __init__(self, model: AnchoredModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: BagBatch) -> tuple[Tensor, Tensor]:
        """Logits [1, C] and the anchor's divergence, of a batch of one bag."""
        aggregator, anchor = self.model.aggregator, self.model.anchor
        assert isinstance(aggregator, AsmilAggregator)
        assert isinstance(anchor, EmaAnchor)
        h_Nd = aggregator.score_path.encode(batch).features_MD
        with torch.no_grad():
            anchor_Nd = anchor.path.encode(batch).features_MD
        features, divergences = [], []
        for token in range(aggregator.tokens):
            log_p_HN, feature_d = self._attend(aggregator.score_path, aggregator.token_readout, h_Nd, token)
            with torch.no_grad():
                scores_HN = _token_scores(anchor.path, anchor_Nd, token)
                target_HN = F.logsigmoid(scores_HN).log_softmax(dim=1).exp()
            features.append(feature_d)
            divergences.append((torch.xlogy(target_HN, target_HN) - target_HN * log_p_HN).sum(dim=1).mean())
        embedding = aggregator.bag_encoder(torch.stack(features)[None], None, None)
        return aggregator.head(embedding), torch.stack(divergences).mean()

    @staticmethod
    def _attend(path: Any, readout: Any, h_Nd: Tensor, token: int) -> tuple[Tensor, Tensor]:
        log_p_HN = _token_scores(path, h_Nd, token).log_softmax(dim=1)
        values_Nd = F.linear(h_Nd, readout.value_weight_Tdd[token], readout.value_bias_Td[token])
        pooled_He = torch.einsum("hn,nhe->he", log_p_HN.exp(), values_Nd.view(len(h_Nd), path.heads, -1))
        out_d = F.linear(pooled_He.flatten(), readout.out_weight_Tdd[token], readout.out_bias_Td[token])
        normed_d = F.layer_norm(out_d, out_d.shape, readout.norm_weight_Td[token], readout.norm_bias_Td[token], 1e-6)
        return log_p_HN, normed_d


def _token_scores(path: Any, h_Nd: Tensor, token: int) -> Tensor:
    dim = h_Nd.shape[1]
    query_d = F.linear(path.token_Td[token], path.query_weight_Tdd[token], path.query_bias_Td[token])
    keys_Nd = F.linear(h_Nd, path.key_weight_Tdd[token], path.key_bias_Td[token])
    shape = (path.heads, dim // path.heads)
    return torch.einsum("he,nhe->hn", query_d.view(shape), keys_Nd.view(len(h_Nd), *shape)) / math.sqrt(shape[1])


def _asmil_model(width: int) -> AnchoredModel:
    aggregator = AsmilConfig(dropout=0, drop_rate=0)
    return build_model(ModelConfig(aggregator=aggregator, anchor=AnchorConfig()), width, HeadSpec(2), seed=0)


def _stepper(model: AnchoredModel, batch: BagBatch, *, per_token: bool = False) -> Callable[[], None]:
    """One whole training step: forward, anchor, backward, clip, Adam, EMA."""
    optimizer = build_optimizer(model.aggregator.parameters(), TrainConfig(lr=1e-12))
    label = torch.zeros(1, dtype=torch.int64, device=batch.features_MD.device)
    slow = PerTokenAsmil(model)

    def step() -> None:
        if per_token:
            logits, kl = slow(batch)
            loss = F.cross_entropy(logits, label) + kl
        else:
            output = model(batch)
            loss = F.cross_entropy(output.logits_BC, label)
            kl_B = model.anchor_loss(output, batch)
            loss = loss if kl_B is None else loss + kl_B.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.aggregator.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.update_anchor("step")

    return step


def _interleaved_seconds(
    steps: Mapping[str, Callable[[], object]], *, repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Median seconds of each step, the steps taking turns."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = clock()
            step()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def step_rows(
    lengths: Sequence[int] = LENGTHS, *, width: int = 384, repeats: int = 9, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Training steps of one bag of each length.

    Args:
        lengths: Instances N.
        width: Feature width D.
        repeats: Steps per form, of which the median counts.
        device: `cpu`, or `cuda` (wall time, synchronized).

    Returns:
        Rows with `n`, milliseconds per form, `ratio_vs_per_token` (how many times faster than the per-token form) and
        `ratio_vs_abmil` (how many times slower than gated ABMIL, hidden 128).
    """
    rows = []
    for n in lengths:
        features_ND = torch.randn(n, width, generator=torch.Generator().manual_seed(n))
        batch = BagBatch.pack([Bag("bag", features_ND)], seeds=[0]).to(device)
        fast, slow = _asmil_model(width).to(device).train(), _asmil_model(width).to(device).train()
        abmil_config = ModelConfig(aggregator=AbmilConfig(hidden=128), anchor=None)
        abmil = build_model(abmil_config, width, HeadSpec(2), seed=0).to(device).train()
        steps = {
            "asmil": _stepper(fast, batch),
            "per_token": _stepper(slow, batch, per_token=True),
            "abmil": _stepper(abmil, batch),
        }
        if device != "cpu":
            steps = {name: _synchronized(step) for name, step in steps.items()}
        clock = time.process_time if device == "cpu" else time.perf_counter
        seconds = _interleaved_seconds(steps, repeats=repeats if n < 20_000 else max(3, repeats // 3), clock=clock)
        rows.append(
            {
                "n": n,
                "d": width,
                "device": device,
                **{f"{name}_ms": round(value * 1e3, 3) for name, value in seconds.items()},
                "ratio_vs_per_token": round(seconds["per_token"] / seconds["asmil"], 2),
                "ratio_vs_abmil": round(seconds["asmil"] / seconds["abmil"], 2),
            }
        )
    return rows


def _synchronized(step: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        step()
        torch.cuda.synchronize()

    return run


def memory_row(device: str) -> dict[str, Any]:
    """Peak memory of training steps on the largest bag, in a process of its own."""
    command = [sys.executable, "-m", "asmil.bench", "memory", "--device", device]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row: dict[str, Any] = json.loads(output)
    return row


def peak_memory(device: str) -> dict[str, Any]:
    """Peak memory of this process after training steps on the largest bag."""
    features_ND = torch.zeros(MEMORY_LENGTH, MEMORY_WIDTH, dtype=torch.float16).normal_()
    batch = BagBatch.pack([Bag("bag", features_ND)], seeds=[0]).to(device)
    step = _stepper(_asmil_model(MEMORY_WIDTH).to(device).train(), batch)
    for _ in range(2):
        step()
    peak_bytes = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if device == "cpu"
        else torch.cuda.max_memory_allocated()
    )
    return {"n": MEMORY_LENGTH, "d": MEMORY_WIDTH, "device": device, "peak_gib": round(peak_bytes / 2**30, 2)}

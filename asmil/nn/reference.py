"""Weights trained with published code, as modules of this library."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asmil.bags import Bag, BagBatch
from asmil.errors import ConfigError
from asmil.nn.aggregators.asmil import AsmilAggregator
from asmil.nn.anchor import EmaAnchor
from asmil.nn.config import AnchorConfig, AsmilConfig
from asmil.nn.heads import HeadSpec
from asmil.nn.model import AnchoredModel, ModelOutput

__all__ = ["ReferenceModel", "ReferenceOutput", "from_reference"]


@dataclass(frozen=True)
class ReferenceOutput:
    """Output for one bag, in the layout of the published code.

    Attributes:
        logits: [1, C], before softmax.
        scores: Attention scores before normalization, [K, N], row k = head * T + token.
        embedding: Bag embedding, [1, d].
    """

    logits: Tensor
    scores: Tensor
    embedding: Tensor


class ReferenceModel(nn.Module):
    """Runs a loaded model on one bag at a time.

    Attributes:
        model: The loaded model, for packed batches and further training.
    """

    def __init__(self, model: AnchoredModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features_ND: Tensor) -> ReferenceOutput:
        """Run one bag of features [N, D] or [1, N, D]."""
        features_ND = features_ND.squeeze(0) if features_ND.dim() == 3 else features_ND
        output: ModelOutput = self.model(BagBatch.pack([Bag("bag", features_ND)]))
        embedding = output.readout.embedding_BD
        assert embedding is not None
        return ReferenceOutput(output.logits_BC, output.scores_MK.T, embedding)


def _stack(state: Mapping[str, Tensor], pattern: str, tokens: int) -> Tensor:
    return torch.stack([state[pattern.format(token)] for token in range(tokens)])


def _asmil_score_path(state: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    return {
        "projection.weight": state["dimreduction.fc1.weight"],
        "token_Td": state["q"][0],
        "query_weight_Tdd": _stack(state, "sub_attention.{}.q_proj.weight", tokens),
        "query_bias_Td": _stack(state, "sub_attention.{}.q_proj.bias", tokens),
        "key_weight_Tdd": _stack(state, "sub_attention.{}.k_proj.weight", tokens),
        "key_bias_Td": _stack(state, "sub_attention.{}.k_proj.bias", tokens),
    }


def _asmil_state(state: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    readout = {
        "value_weight_Tdd": "v_proj.weight",
        "value_bias_Td": "v_proj.bias",
        "out_weight_Tdd": "out_proj.weight",
        "out_bias_Td": "out_proj.bias",
        "norm_weight_Td": "layer_norm.weight",
        "norm_bias_Td": "layer_norm.bias",
    }
    encoder = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj", "norm": "layer_norm"}
    result = {f"score_path.{name}": value for name, value in _asmil_score_path(state, tokens).items()}
    for name, theirs in readout.items():
        result[f"token_readout.{name}"] = _stack(state, "sub_attention.{}." + theirs, tokens)
    for name, theirs in encoder.items():
        for kind in ("weight",) if name == "key" else ("weight", "bias"):
            result[f"bag_encoder.{name}.{kind}"] = state[f"bag_attention.{theirs}.{kind}"]
    result["bag_encoder.cls_d"] = state["cls"][0, 0]
    for kind in ("weight", "bias"):
        result[f"head.{kind}"] = state[f"Slide_classifier.fc.{kind}"]
    return result


_ASMIL_UNUSED = re.compile(r"dimreduction\.bn\.|classifier\.\d+\.fc\.")


def _load_asmil(
    state: Mapping[str, Tensor],
    *,
    heads: int = 8,
    n_drop: int = 0,
    dropout: float = 0.1,
    anchor_state: Mapping[str, Tensor] | None = None,
    temperature: float = 1.0,
    ema_factor: float = 0.999,
) -> AnchoredModel:
    """ASMIL of Linfeng-Ye/ASMIL: `ACMIL_MYMHA`, and `ACMIL_MYMHA_EMA` as anchor.

    Its `classifier.*` heads and `dimreduction.bn` never reach the slide logits, nor does the key bias of its
    `bag_attention`, which softmax ignores: they are left out.
    """
    tokens, dim = state["q"].shape[1:]
    dtype = state["q"].dtype
    config = AsmilConfig(tokens=tokens, heads=heads, drop_rate=n_drop / tokens, drop_mode="exact", dropout=dropout)
    in_dim = state["dimreduction.fc1.weight"].shape[1]
    head = HeadSpec(out_dim=len(state["Slide_classifier.fc.bias"]))
    aggregator = AsmilAggregator(config, in_dim, dim, head).to(dtype)
    converted = _asmil_state(state, tokens)
    used = len([name for name in state if not _ASMIL_UNUSED.match(name)])
    expected = 15 + 10 * tokens
    if used != expected:
        raise ConfigError(f"from_reference('asmil'): expected {expected} tensors for {tokens} tokens, got {used}")
    aggregator.load_state_dict(converted)
    if anchor_state is None:
        return AnchoredModel(aggregator)
    anchor = EmaAnchor(
        AnchorConfig(ema_factor=ema_factor, temperature=temperature, nsf_eps=1e-8, kl_reduction="instance_mean"),
        aggregator.score_path,
    )
    anchor.path.load_state_dict(_asmil_score_path(anchor_state, tokens))
    return AnchoredModel(aggregator, anchor)


_LOADERS: dict[str, Callable[..., AnchoredModel]] = {"asmil": _load_asmil}


def from_reference(name: str, state_dict: Mapping[str, Tensor], **constructor: object) -> ReferenceModel:
    """Load weights trained with a method's published code.

    Args:
        name: The method: `asmil`.
        state_dict: Its state dict, as plain tensors.
        **constructor: What the weights' shapes do not tell. `asmil`: `heads`, `n_drop`, `dropout`; `anchor_state`
            (state dict of its EMA model), `temperature` and `ema_factor` to go on training as its script does.

    Returns:
        The model in evaluation mode, in the dtype of the weights.

    Raises:
        ConfigError: An unknown method, setting or tensor, or a missing tensor.
    """
    if name not in _LOADERS:
        raise ConfigError(f"from_reference: unknown method {name!r}; known: {', '.join(_LOADERS)}")
    try:
        model = _LOADERS[name](state_dict, **constructor)
    except KeyError as error:
        raise ConfigError(f"from_reference({name!r}): the state dict has no tensor {error}") from None
    except TypeError as error:
        raise ConfigError(f"from_reference({name!r}): {error}") from None
    return ReferenceModel(model).eval()

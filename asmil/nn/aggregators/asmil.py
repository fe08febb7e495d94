"""ASMIL's aggregator: FEAT tokens that attend to the instances, random token drop, and a CLS bag encoder.

Source: "ASMIL: Attention-Stabilized Multiple Instance Learning for Whole Slide Imaging" (ICLR 2026).

Each FEAT token is one query, so neither keys nor values of the instances are ever computed. With
u = W_k^T q / sqrt(d_h) and c = <q, b_k> / sqrt(d_h) the score of instance n is <u, h_n> + c, and because attention
weights sum to 1 the pooled value is W_v (sum of p h_n) + b_v: one [M, d] x [d, T * Hh] product gives all scores of all
tokens and heads. The same function as the per-token form, with the same parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asmil.bags import BagBatch
from asmil.nn.aggregators.base import Aggregator, Encoded, Readout, ScorePath, uniform_per_bag
from asmil.nn.attention import log_nsf, log_softmax, log_softmax_nsf_mixture, split_bags, weighted_sums
from asmil.nn.config import AsmilConfig
from asmil.nn.heads import HeadSpec

__all__ = ["AsmilAggregator", "BagEncoder", "TokenReadout", "TokenScores", "keep_tokens"]

LAYER_NORM_EPS = 1e-6
TOKEN_STD = 1e-6


def _linear(*shape: int, fan_in: int) -> nn.Parameter:
    """A parameter with PyTorch's default initialization of linear layers: U(-1, 1) / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class TokenScores(ScorePath):
    """Projection, FEAT tokens and their query and key projections, stacked over tokens.

    Args:
        in_dim: Stored feature width D.
        dim: Inner width d.
        tokens: T.
        heads: Hh; divides d.
        tokens_as_keys: Append the T tokens to the keys of every bag.
        shift_invariant: The online normalizer ignores a constant added to all scores of a bag, as softmax does. The
            gradient of the constant c is then zero; it is cut here, because Adam would turn its rounding noise into
            full-sized steps of the key biases, which the anchor's sigmoid does feel. Key biases are then not trained.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        tokens: int,
        heads: int,
        tokens_as_keys: bool = False,
        shift_invariant: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.tokens_as_keys = tokens_as_keys
        self.shift_invariant = shift_invariant
        self.projection = nn.Linear(in_dim, dim, bias=False)
        self.token_Td = nn.Parameter(torch.randn(tokens, dim) * TOKEN_STD)
        self.query_weight_Tdd = _linear(tokens, dim, dim, fan_in=dim)
        self.query_bias_Td = _linear(tokens, dim, fan_in=dim)
        self.key_weight_Tdd = _linear(tokens, dim, dim, fan_in=dim)
        self.key_bias_Td = _linear(tokens, dim, fan_in=dim)

    def encode(self, batch: BagBatch) -> Encoded:
        """`ReLU(W_in x)` of every instance [M, d], tokens appended to each bag if they serve as keys."""
        features_MD = batch.features_MD.to(self.projection.weight.dtype)
        encoded_Md = F.relu(self.projection(features_MD))
        if not self.tokens_as_keys:
            return Encoded(encoded_Md, batch.offsets)
        tokens = self.token_Td.to(encoded_Md.dtype)
        rows = [torch.cat([part, tokens]) for part in split_bags(encoded_Md, batch.offsets)]
        shift = torch.arange(len(batch.offsets)) * len(tokens)
        return Encoded(torch.cat(rows), batch.offsets + shift, extra_rows=len(tokens))

    def effective_queries(self) -> tuple[Tensor, Tensor]:
        """The folded queries: u [K, d] and c [K], with score = <u, h> + c and column k = head * T + token."""
        tokens, dim = self.token_Td.shape
        head_dim = dim // self.heads
        query_Td = torch.einsum("tij,tj->ti", self.query_weight_Tdd, self.token_Td) + self.query_bias_Td
        query_THe = query_Td.view(tokens, self.heads, head_dim) / math.sqrt(head_dim)
        folded_HTd = torch.einsum(
            "the,thed->htd", query_THe, self.key_weight_Tdd.view(tokens, self.heads, head_dim, dim)
        )
        constant_HT = torch.einsum("the,the->ht", query_THe, self.key_bias_Td.view(tokens, self.heads, head_dim))
        return folded_HTd.reshape(-1, dim), constant_HT.reshape(-1)

    def scores(self, encoded: Encoded) -> Tensor:
        """Scores [M, Hh * T] in the parameters' precision, also under autocast."""
        with torch.autocast(encoded.features_MD.device.type, enabled=False):
            folded_Kd, constant_K = self.effective_queries()
            if self.shift_invariant:
                constant_K = constant_K.detach()
            return torch.addmm(constant_K, encoded.features_MD.to(folded_Kd.dtype), folded_Kd.T)


class TokenReadout(nn.Module):
    """Value and output projections and the layer norm of every FEAT token's attention, stacked over tokens."""

    def __init__(self, dim: int, *, tokens: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.value_weight_Tdd = _linear(tokens, dim, dim, fan_in=dim)
        self.value_bias_Td = _linear(tokens, dim, fan_in=dim)
        self.out_weight_Tdd = _linear(tokens, dim, dim, fan_in=dim)
        self.out_bias_Td = _linear(tokens, dim, fan_in=dim)
        self.norm_weight_Td = nn.Parameter(torch.ones(tokens, dim))
        self.norm_bias_Td = nn.Parameter(torch.zeros(tokens, dim))

    def forward(self, pooled_BKd: Tensor, dropout_mask_BTd: Tensor | None) -> Tensor:
        """FEAT token features [B, T, d] from the instances pooled by each head of each token."""
        tokens, dim = self.value_bias_Td.shape
        head_dim = dim // self.heads
        pooled_BHTd = pooled_BKd.view(-1, self.heads, tokens, dim)
        value_weight_THed = self.value_weight_Tdd.view(tokens, self.heads, head_dim, dim)
        value_BTd = torch.einsum("bhtd,thed->bthe", pooled_BHTd, value_weight_THed).flatten(2) + self.value_bias_Td
        out_BTd = torch.einsum("btd,ted->bte", value_BTd, self.out_weight_Tdd) + self.out_bias_Td
        if dropout_mask_BTd is not None:
            out_BTd = out_BTd * dropout_mask_BTd
        return F.layer_norm(out_BTd, (dim,), eps=LAYER_NORM_EPS) * self.norm_weight_Td + self.norm_bias_Td


class BagEncoder(nn.Module):
    """Multi-head attention of a trainable CLS query over the kept FEAT token features, with layer norm.

    The keys have no bias: it would add the same constant to every token's score, which softmax ignores.
    """

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.cls_d = nn.Parameter(torch.zeros(dim))
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, features_BTd: Tensor, kept_BT: Tensor | None, dropout_mask_Bd: Tensor | None) -> Tensor:
        """Bag embeddings [B, d]; tokens that are not kept get no attention."""
        batch, tokens, dim = features_BTd.shape
        split = (batch, tokens, self.heads, dim // self.heads)
        query_He = self.query(self.cls_d).view(self.heads, -1) / math.sqrt(split[-1])
        scores_BHT = torch.einsum("he,bthe->bht", query_He, self.key(features_BTd).view(split))
        if kept_BT is not None:
            scores_BHT = scores_BHT.masked_fill(~kept_BT[:, None], -torch.inf)
        value_Bd = torch.einsum(
            "bht,bthe->bhe", scores_BHT.softmax(dim=-1), self.value(features_BTd).view(split)
        ).flatten(1)
        out_Bd = self.out(value_Bd)
        if dropout_mask_Bd is not None:
            out_Bd = out_Bd * dropout_mask_Bd
        return self.norm(out_Bd)  # type: ignore[no-any-return]


def keep_tokens(uniform_BT: Tensor, *, drop_rate: float, exact: bool) -> Tensor:
    """Which FEAT tokens of each bag survive the random drop; at least one always does.

    Args:
        uniform_BT: Uniform numbers in [0, 1).
        drop_rate: Share to drop.
        exact: Drop exactly round(drop_rate * T) tokens, at most T - 1; otherwise each by itself.

    Returns:
        Bool [B, T].

    Example:
        >>> keep_tokens(torch.tensor([[0.1, 0.9, 0.6, 0.4]]), drop_rate=0.5, exact=True)
        tensor([[False,  True,  True, False]])
    """
    tokens = uniform_BT.shape[1]
    if exact:
        dropped = min(math.floor(drop_rate * tokens + 0.5), tokens - 1)
        return uniform_BT.argsort(dim=1).argsort(dim=1) >= dropped
    kept_BT = uniform_BT >= drop_rate
    survivor_BT = F.one_hot(uniform_BT.argmax(dim=1), tokens).bool()
    return kept_BT | (survivor_BT & ~kept_BT.any(dim=1, keepdim=True))


class AsmilAggregator(Aggregator):
    """ASMIL: token scores, token read-out, random token drop, bag encoder, head.

    Args:
        config: Its settings.
        in_dim: Stored feature width D.
        dim: Inner width d, a multiple of `config.heads`.
        head: The task's head.
    """

    def __init__(self, config: AsmilConfig, in_dim: int, dim: int, head: HeadSpec) -> None:
        super().__init__()
        self.config = config
        self.tokens = config.tokens
        self.dim = dim
        self.score_path: TokenScores = TokenScores(
            in_dim,
            dim,
            tokens=config.tokens,
            heads=config.heads,
            tokens_as_keys=config.tokens_as_keys,
            shift_invariant=config.normalizer == "softmax",
        )
        self.token_readout = TokenReadout(dim, tokens=config.tokens, heads=config.heads)
        self.bag_encoder = BagEncoder(dim, heads=config.heads)
        self.head = head.build(dim)
        self.mixture_logit = nn.Parameter(torch.zeros(())) if config.normalizer == "mixture" else None

    def log_weights(self, scores_MK: Tensor, offsets: Tensor) -> Tensor:
        """Log attention [M, K]: softmax, NSF, or their trained mixture."""
        if self.mixture_logit is not None:
            return log_softmax_nsf_mixture(scores_MK, offsets, self.mixture_logit)
        normalize = log_nsf if self.config.normalizer == "nsf" else log_softmax
        return normalize(scores_MK, offsets)

    def scalars(self) -> dict[str, float]:
        """`softmax_share`: the trained lambda of the mixture (Eq. 34), if there is one."""
        return {} if self.mixture_logit is None else {"softmax_share": self.mixture_logit.sigmoid().item()}

    def pool(self, encoded: Encoded, weights_MK: Tensor, batch: BagBatch) -> Readout:
        """Token features, random drop (training only), bag embedding and the head's outputs."""
        pooled_BKd = weighted_sums(weights_MK.to(encoded.features_MD.dtype), encoded.features_MD, encoded.offsets)
        kept_BT, token_mask_BTd, bag_mask_Bd = self._noise(batch, pooled_BKd.device)
        features_BTd = self.token_readout(pooled_BKd.to(self.token_readout.value_bias_Td.dtype), token_mask_BTd)
        embedding_Bd = self.bag_encoder(features_BTd, kept_BT, bag_mask_Bd)
        return Readout(logits_BC=self.head(embedding_Bd), embedding_BD=embedding_Bd, kept_BT=kept_BT)

    def _noise(self, batch: BagBatch, device: torch.device) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Kept tokens and the scaled dropout masks of both attention blocks, from one stream per bag."""
        rate, dropout = self.config.drop_rate, self.config.dropout
        if not self.training or (rate == 0 and dropout == 0):
            return None, None, None
        widths = [self.tokens, self.tokens * self.dim, self.dim]
        noise_BW = uniform_per_bag(batch, sum(widths), device)
        for_drop_BT, for_tokens, for_bag_Bd = torch.split(noise_BW, widths, dim=1)
        kept_BT = keep_tokens(for_drop_BT, drop_rate=rate, exact=self.config.drop_mode == "exact") if rate else None
        if dropout == 0:
            return kept_BT, None, None
        token_mask = (for_tokens >= dropout).float() / (1 - dropout)
        bag_mask_Bd = (for_bag_Bd >= dropout).float() / (1 - dropout)
        return kept_BT, token_mask.view(-1, self.tokens, self.dim), bag_mask_Bd

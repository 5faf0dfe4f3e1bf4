"""A small GPT over bytes, in the manner of karpathy/nanoGPT, with dropout so that exact resume has randomness to get
right."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instep_trainer.train.config import ModelConfig

VOCABULARY = 256
"""One token per byte."""


class Gpt(nn.Module):
    """Predicts the next byte. Called with tokens and targets it gives the mean cross entropy in nats."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, config.width)
        self.position = nn.Embedding(config.sequence_length, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, VOCABULARY, bias=False)
        self.head.weight = self.token.weight
        self.apply(_initialise)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Give the loss of `tokens` (batch, length) against `targets` of the same shape."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        stream = self.dropout(self.token(tokens) + self.position(places))
        for block in self.blocks:
            stream = block(stream)
        logits = self.head(self.norm(stream))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Block(nn.Module):
    """Attention and feed-forward, each behind a layer norm and beside the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.forward_norm = nn.LayerNorm(config.width)
        self.widen = nn.Linear(config.width, 4 * config.width)
        self.narrow = nn.Linear(4 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, stream: Tensor) -> Tensor:
        """Give the stream after this block."""
        stream = stream + self.attention(self.attention_norm(stream))
        hidden = self.narrow(F.gelu(self.widen(self.forward_norm(stream))))
        added: Tensor = stream + self.dropout(hidden)
        return added


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.output_dropout = nn.Dropout(config.dropout)

    def forward(self, stream: Tensor) -> Tensor:
        """Give what each position takes from those before it."""
        batch, length, width = stream.shape
        parts = self.query_key_value(stream).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        taken: Tensor = self.output_dropout(self.output(mixed.transpose(1, 2).reshape(batch, length, width)))
        return taken


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)

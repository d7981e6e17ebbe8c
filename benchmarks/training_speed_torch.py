"""The paper's towers in PyTorch, as one would write them with it: XLM-R of transformers, `EmbeddingBag`, fused Adam.

They learn from the batches of `q2s_tf.examples.batches`, with the same loss and the same kind of first weights (one
random table for all 3-grams, silent projections of the text). Token tables have dense gradients, as in transformers;
3-gram tables have sparse ones and `SparseAdam`. Attention is PyTorch's fused one.
"""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
from torch import nn
from transformers import XLMRobertaConfig, XLMRobertaModel

TOWERS = ("query", "document")


class Tower(nn.Module):
    """One tower, of 3-gram ids `[B, G]` and token ids `[B, L]`, 0 being padding, to unit vectors `[B, D]`.

    Args:
        channels: the tower's channels in the config of a run, one of 3-grams and one of text, by name.
        geometry: the text's encoder in that config.
        dimension: D.
        vocabulary: rows of the token table.
    """

    def __init__(self, channels: dict[str, Any], geometry: dict[str, Any], dimension: int, vocabulary: int):
        super().__init__()
        self.inputs = {channel["kind"]: name for name, channel in channels.items()}
        of_kind = {channel["kind"]: channel for channel in channels.values()}
        buckets = of_kind["trigrams"]["buckets"]
        self.trigrams = nn.EmbeddingBag(buckets + 1, dimension, mode="sum", padding_idx=0, sparse=True)
        nn.init.normal_(self.trigrams.weight, std=dimension**-0.5, generator=torch.Generator().manual_seed(3))
        settings = XLMRobertaConfig(
            vocab_size=vocabulary,
            num_hidden_layers=geometry["num_layers"],
            num_attention_heads=geometry["num_heads"],
            hidden_size=geometry["hidden_dim"],
            intermediate_size=geometry["intermediate_dim"],
            hidden_dropout_prob=geometry["dropout"],
            attention_probs_dropout_prob=geometry["dropout"],
            max_position_embeddings=of_kind["text"]["max_tokens"] + 1,
            type_vocab_size=1,
            pad_token_id=0,
        )
        self.text = XLMRobertaModel(settings, add_pooling_layer=False)
        self.projection = nn.Linear(geometry["hidden_dim"], dimension)
        self.fusion = nn.Linear(2 * dimension, 2, bias=False)
        for silent in (self.projection.weight, self.projection.bias, self.fusion.weight):
            nn.init.zeros_(silent)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Embeds the tower's inputs by channel (eq. 1)."""
        tokens = batch[self.inputs["text"]]
        cls = self.text(tokens, attention_mask=(tokens != 0).long()).last_hidden_state[:, 0]
        channels = torch.stack([self.trigrams(batch[self.inputs["trigrams"]]), self.projection(cls)], dim=1)
        weights = torch.softmax(self.fusion(channels.flatten(1)), dim=1)
        return nn.functional.normalize((weights[..., None] * channels).sum(dim=1), dim=1)


def training(config: dict[str, Any], vocabulary: int, threads: int, batches: list[dict[str, Any]]) -> Iterator[float]:
    """Learns from a batch, again and again from the first, whenever its next value is asked for; yields its loss.

    Args:
        config: of a run.
        vocabulary: rows of the token tables.
        threads: of PyTorch.
        batches: as `Examples.batch` makes them.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(config["seed"])
    towers = nn.ModuleDict({tower: build_tower(config, tower, vocabulary) for tower in TOWERS}).train()
    tables = [tower.trigrams.weight for tower in towers.values()]
    text = [weight for tower in towers.values() for weight in tower.text.parameters()]
    dense = [weight for weight in towers.parameters() if all(weight is not table for table in tables)]
    rest = [weight for weight in dense if all(weight is not other for other in text)]
    stage = config["stage1"]
    rate = stage["learning_rate"]
    groups = [{"params": rest, "lr": rate}, {"params": text, "lr": stage["text_learning_rate"]}]
    optimizers = [torch.optim.Adam(groups, fused=True), torch.optim.SparseAdam(tables, lr=rate)]
    for batch in cycle([as_tensors(batch) for batch in batches]):
        loss = in_batch_softmax(towers["query"](batch["query"]), towers["document"](batch["document"]), batch, stage)
        loss.backward()
        clip(dense, tables, config["clip_norm"])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        yield loss.item()


def build_tower(config: dict[str, Any], tower: str, vocabulary: int) -> Tower:
    """One of the towers that a config declares."""
    channels = {name: channel for name, channel in config["channels"].items() if channel["tower"] == tower}
    geometry = next(config["encoders"][each["encoder"]] for each in channels.values() if each["kind"] == "text")
    return Tower(channels, geometry, config["dimension"], vocabulary)


def in_batch_softmax(
    query: torch.Tensor, document: torch.Tensor, batch: dict[str, Any], stage: dict[str, Any]
) -> torch.Tensor:
    """The mean of eq. 2 over the rows by their weight; a known positive is no negative."""
    scores = (stage["scale"] * query @ document.T).masked_fill(~batch["score_mask"], -1e9)
    losses = nn.functional.cross_entropy(scores, torch.arange(len(scores)), reduction="none")
    return (batch["weight"] * losses).sum() / batch["weight"].sum()


def clip(dense: list[nn.Parameter], tables: list[nn.Parameter], largest: float) -> None:
    """`clip_grad_norm_`, which takes no sparse gradients, for those too."""
    for table in tables:
        table.grad = table.grad.coalesce()
    gradients = [weight.grad for weight in dense] + [table.grad.values() for table in tables]
    norm = nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))


def as_tensors(batch: Any) -> Any:
    """A structure of arrays as one of tensors."""
    if isinstance(batch, dict):
        return {name: as_tensors(value) for name, value in batch.items()}
    return torch.tensor(batch)

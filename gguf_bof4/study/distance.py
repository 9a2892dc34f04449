"""How far a quantized model is from the unquantized one, in PyTorch: what llama-perplexity --kl-divergence measures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gguf_bof4.progress import Progress, no_progress
from gguf_bof4.study.models import Loaded, logits_of
from gguf_bof4.study.record import Tensor
from gguf_bof4.study.workers import in_parallel


@dataclass(frozen=True)
class Distance:
    """Over the judged tokens of a text.

    Attributes:
        mean_kld: mean KL divergence of the next token's distribution from the unquantized model's, in nats.
        mean_kld_error: its standard error.
        kld_99_9: the divergence that one token in a thousand exceeds.
        same_top: percent of the tokens where both models find the same one most probable.
        ppl: perplexity.
        ppl_ratio: perplexity over that of the unquantized model.
    """

    mean_kld: float
    mean_kld_error: float
    kld_99_9: float
    same_top: float
    ppl: float
    ppl_ratio: float


class Judge:
    """The unquantized model's distributions on some chunks, kept in memory (float32, one a judged token)."""

    def __init__(self, loaded: Loaded, chunks: Tensor, progress: Progress = no_progress) -> None:
        """Args:
        chunks: int64 [count, length]; the second half of each is judged.
        """
        self.chunks = chunks
        self._judged = chunks.shape[1] - chunks.shape[1] // 2
        self._expected = in_parallel(
            lambda row: self._log_probabilities(loaded, row),
            chunks,
            lambda n: progress("the unquantized model", n, len(chunks)),
        )

    def _log_probabilities(self, loaded: Loaded, row: Tensor) -> Tensor:
        return torch.log_softmax(logits_of(loaded, row, self._judged)[:-1], dim=1)

    def distance(self, loaded: Loaded, progress: Progress = no_progress) -> Distance:
        """Of the model as it is now."""

        def of_chunk(i: int) -> Tensor:
            """Divergence, whether the most probable tokens agree, loss, loss of the unquantized model: [4, tokens]."""
            row, expected = self.chunks[i], self._expected[i]
            found = self._log_probabilities(loaded, row)
            target = row[-len(found) :, None]
            measured = (
                (expected.exp() * (expected - found)).sum(dim=1), expected.argmax(dim=1) == found.argmax(dim=1),
                -found.gather(1, target)[:, 0], -expected.gather(1, target)[:, 0],
            )  # fmt: skip
            return torch.stack([part.to(torch.float64) for part in measured])

        count = len(self.chunks)
        by_chunk = in_parallel(of_chunk, range(count), lambda n: progress("chunks", n, count))
        kld, same, loss, base = torch.cat(by_chunk, dim=1)
        kld = kld.clamp(min=0)
        mean_loss, mean_base = float(loss.mean()), float(base.mean())
        return Distance(
            mean_kld=float(kld.mean()),
            mean_kld_error=float(kld.std() / math.sqrt(len(kld))),
            kld_99_9=float(torch.quantile(kld, 0.999)),
            same_top=100 * float(same.mean()),
            ppl=math.exp(min(mean_loss, 700.0)),
            ppl_ratio=math.exp(min(mean_loss - mean_base, 700.0)),
        )

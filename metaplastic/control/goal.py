"""What a controller steers the output to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Goal:
    """The control error e = target - link(r_L); the link is the identity, or the softmax of
    logits.
    """

    target: Tensor
    """(B, K)"""
    softmax: bool = False

    def error(self, output: Tensor) -> Tensor:
        """(B, K) control error at an output (B, K)."""
        return self.target - (output.softmax(-1) if self.softmax else output)

    def linked(self, output: Tensor, change: Tensor) -> Tensor:
        """The link's Jacobian at the output times ``change``, (B, K, m) -> (B, K, m)."""
        if not self.softmax:
            return change
        p = output.softmax(-1).unsqueeze(-1)
        return p * (change - (p * change).sum(-2, keepdim=True))

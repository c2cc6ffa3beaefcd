"""The count of live bytes."""

from __future__ import annotations

import torch

from metaplastic.analysis import LiveBytes


def test_live_bytes_counts_what_lives() -> None:
    with LiveBytes() as live:
        x = torch.zeros(100, dtype=torch.float64)
        y = x + 1
        del x
        z = y.reshape(10, 10)
        assert (live.now, live.peak) == (800, 1600)
        del y
        assert live.now == 800
        del z
        assert live.now == 0


def test_what_was_there_before_is_not_counted() -> None:
    x = torch.zeros(100, dtype=torch.float64)
    with LiveBytes() as live:
        x.add_(1)
        view = x[:50]
        assert (live.now, live.peak) == (0, 0)
        grown = torch.cat([view, x])
        assert (live.now, live.peak) == (1200, 1200)
    del grown


def test_a_graph_is_counted() -> None:
    """Backpropagation through sin keeps its input, and through exp its output."""
    start = torch.zeros(100, dtype=torch.float64, requires_grad=True)
    with LiveBytes() as live:
        x = start
        for _ in range(5):
            x = (x * 1.5).sin()
        assert live.now == 800 * (5 + 1)
        del x
        assert live.now == 0


def test_batched_tensors_count_with_all_their_episodes() -> None:
    with LiveBytes() as live:
        found = torch.func.vmap(lambda x: x.exp())(torch.zeros(7, 10, dtype=torch.float64))
        assert live.now == 7 * 10 * 8
    del found

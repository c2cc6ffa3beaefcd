"""Triton's language, of which type checkers do not know how programs use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    tl: Any
    constexpr: TypeAlias = Any
else:
    import triton.language as tl
    from triton.language import constexpr

__all__ = ["constexpr", "tl"]

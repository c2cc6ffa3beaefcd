"""How Numba compiles the kernels of a CPU, and keeps them on disk."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import cgutils
from numba.extending import intrinsic

# Arrays that lie close together go through a loop one number at a time, others in vectors. So that
# results do not depend on where the memory is, what writes is rounded in the order of the source;
# what only sums may be summed in any order, which is then that of vectors always. NaN and infinity
# keep their meaning.
EXACT = {"nsz", "arcp", "contract", "afn"}
compiled = njit(nogil=True, error_model="numpy", fastmath=EXACT)
within = njit(nogil=True, error_model="numpy", fastmath=EXACT, forceinline=True)
summing = njit(nogil=True, error_model="numpy", fastmath={*EXACT, "reassoc"})
_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_DIGEST = sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:12]


def entry(function: Callable[..., None]) -> Any:
    """Compiled and kept on disk, with all that it calls, until any file of the kernels changes;
    Numba by itself looks at the file of the function alone.
    """
    function.__qualname__ += f"_{_DIGEST}"
    return njit(cache=True, nogil=True, error_model="numpy", fastmath=EXACT)(function)


def _borrowed(typing: Any, array: Any) -> Any:
    """The same array without a count of references, which its views would keep in the innermost
    loop. Whoever lends it holds on to it.
    """
    del typing

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    return array(array), codegen


borrowed: Any = intrinsic(_borrowed)

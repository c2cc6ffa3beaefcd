"""Objects that remember what they were made with."""

from __future__ import annotations

import inspect
from typing import Any, Self


class Described:
    """Keeps the arguments it was made with, so that a file can make it again.

    Works for subclasses without any word of theirs; ``deepcopy`` and pickling go on as always.
    """

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        # Copying calls this without arguments, and fills in the attributes itself.
        signature = inspect.signature(cls.__init__)
        given = dict(list(signature.bind_partial(made, *args, **kwargs).arguments.items())[1:])
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        object.__setattr__(made, "_arguments", given)
        return made

    def describe(self) -> dict[str, Any]:
        """``{"type": class name, argument: value, ...}``, nested for arguments that are Described;
        arguments that were not given are left out.
        """
        values = {
            n: v.describe() if isinstance(v, Described) else v for n, v in self._arguments.items()
        }
        return {"type": type(self).__name__, **values}

# SPDX-License-Identifier: BSD-2-Clause
"""Built-in trusted applications.

``crypto`` and ``storage`` need the extra "crypto" (the ``cryptography`` package). Without it they are
registered all the same, but no session opens (TEE_ERROR_NOT_SUPPORTED); call
:func:`secure_world.apps.cipher.require_crypto` for an error that names the extra.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Final

from secure_world.ta import TaRegistry, TrustedApplication

_MODULES: Final[tuple[str, ...]] = (
    "devices",
    "invoke_tests",
    "echo",
    "basic",
    "crypto",
    "storage",
)


def applications(module: ModuleType) -> tuple[type[TrustedApplication], ...]:
    """The TA classes that ``module`` itself defines, in the order of their definition."""
    return tuple(
        [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, TrustedApplication)
            and value.__module__ == module.__name__
            and "uuid" in vars(value)
        ]
    )


def default_registry() -> TaRegistry:
    """A fresh registry with every built-in TA."""
    registry = TaRegistry()
    for name in _MODULES:
        for application in applications(import_module(f"{__name__}.{name}")):
            registry.register(application)
    return registry

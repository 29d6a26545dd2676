"""Attribution methods by name: each registers its own class where it is written (docs/extend/method.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeVar

from torch import nn

from unoise_monai.attribution.base import NEEDS, Attributor
from unoise_monai.checks import check_choice

Method = TypeVar("Method", bound=type[Attributor])

_CLASSES: dict[str, type[Attributor]] = {}
METHODS: Mapping[str, type[Attributor]] = MappingProxyType(_CLASSES)
"""The registered classes by ``name``, to read only."""


def register(method: Method) -> Method:
    """Make a method known by its class's ``name``; a decorator.

    Raises:
        ValueError: when the class has no name of its own in lower-case words with underscores, another class has the
            name, or one of its ``needs`` is not one of `NEEDS`.
    """
    name = str(vars(method).get("name", ""))
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ValueError(f"name of {method.__name__} must be lower-case words with underscores, got {name!r}")
    known = _CLASSES.get(name, method)
    # A module that is imported again defines its class again.
    if (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"name of {method.__name__} must be unused, got {name!r}, which {known.__module__} has")
    for need in method.needs:
        check_choice(f"needs of {method.__name__}", need, NEEDS)
    _CLASSES[name] = method
    return method


def method_names() -> tuple[str, ...]:
    """The names that `make_attributor` takes."""
    return tuple(METHODS)


def make_attributor(name: str, network: nn.Module, **options: Any) -> Attributor:
    """The method of that name over a network.

    Args:
        name: one of `method_names`.
        network: a segmentation network, ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``.
        **options: of the method's class; one that ``needs`` a ``noise_model`` must be given it.

    Raises:
        ValueError: when there is no such method, or it refuses an option.
        TypeError: when the method has no such option.
    """
    if name not in METHODS:
        close = get_close_matches(str(name).lower(), METHODS)
        hint = f" (close: {', '.join(map(repr, close))})" if close else ""
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {name!r}{hint}")
    return METHODS[name](network, **options)

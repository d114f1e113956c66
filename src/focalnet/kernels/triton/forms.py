"""Forms of the GPU kernels that are right, but whose speed is still to be decided on a GPU: all off by default.

``rank-1``: the global level is added after the projection ``h`` instead of before it. With ``e`` the global context and
``g`` its gate, ``h(out + g e) = h(out) + g (W e)``, as ``h`` is linear: no kernel has to pass over ``out`` again.
``padded``: the projection ``f`` gets columns of zeros, so that the context of each pixel starts at an aligned address.

The environment variable ``FOCALNET_TRITON_FORMS`` has their names, separated by commas.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from focalnet.errors import ConfigError, did_you_mean
from focalnet.ops import modes

RANK_ONE, PADDED = "rank-1", "padded"
FORMS = (RANK_ONE, PADDED)
_ENVIRONMENT = tuple(filter(None, os.environ.get("FOCALNET_TRITON_FORMS", "").split(",")))
_chosen: ContextVar[tuple[str, ...]] = ContextVar("focalnet_triton_forms", default=_ENVIRONMENT)


@modes.constant
def chosen(form: str) -> bool:
    """Whether this form was set by ``use`` or by the environment variable; a compiled model keeps its forms.

    Raises:
        ConfigError: there is no form of a name that was set.
    """
    return form in _checked(_chosen.get())


@contextmanager
def use(*forms: str) -> Iterator[None]:
    """Context in which the GPU kernels have these forms and no others.

    Raises:
        ConfigError: there is no such form.
    """
    token = _chosen.set(_checked(forms))
    try:
        yield
    finally:
        _chosen.reset(token)


def _checked(forms: tuple[str, ...]) -> tuple[str, ...]:
    for form in forms:
        if form not in FORMS:
            known = ", ".join(FORMS)
            raise ConfigError(f'no form "{form}" of the GPU kernels{did_you_mean(form, FORMS)}; there are {known}')
    return forms

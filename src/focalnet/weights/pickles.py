"""PyTorch's files read without running anything of them.

A file of tensors and plain values alone is read by ``torch.load(weights_only=True)``. Training scripts keep more beside
the weights: numbers of NumPy, paths, dates, options as objects of packages that are not installed. Here an object is
taken in and nothing is done with it: what a pickle names is never imported, and in its place stands a ``Passed``,
which keeps what the pickle gives it. What a pickle calls is one of the few functions below, which make tensors, or
the making of a ``Passed``.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import torch
from torch import Tensor

# A file that names one of these is not one that somebody saved by accident. Nothing of it would run in any case.
_HOSTILE_MODULES = frozenset(  # by their names in Python 2, too, by which protocol 2 calls them
    "_posixsubprocess bdb cProfile code codeop commands ctypes ftplib http httplib imp importlib multiprocessing nt os "
    "pdb pip pkgutil popen2 posix profile pty runpy shutil signal smtplib socket subprocess sys tempfile timeit trace "
    "urllib urllib2 webbrowser".split()
)
_HOSTILE_BUILTINS = frozenset("__import__ breakpoint compile delattr eval exec input open setattr".split())


class Hostile(pickle.UnpicklingError):
    """A pickle names what runs programs or changes files; ``str()`` is that name."""


class Passed(dict[Any, Any]):
    """Stands for an object of any class: takes whatever a pickle gives it, and does nothing.

    Attributes:
        state: what the object would have been restored from.
    """

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Passed:
        return dict.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Passed:  # what ``getattr`` would have given is called, too
        return Passed()

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key
    __eq__ = object.__eq__
    __ne__ = object.__ne__


class _Pairs(Passed):
    """An ``OrderedDict``, which old pickles make of a list of pairs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        if args and isinstance(args[0], (list, tuple)):
            self.update(args[0])


class _Call:
    """A function that a pickle may call; nothing of it can be changed."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise pickle.UnpicklingError("a pickle may not change functions")

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a pickle may not change functions")


class _Bytes:
    """The type of a storage of bytes, of which ``torch.load`` asks the type of its numbers."""

    __slots__ = ()
    dtype = torch.uint8


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    made: Tensor = torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))  # type: ignore[no-untyped-call]
    return made


def _first(data: Any, *_: Any) -> Any:
    return data


def _tensor_of_type(function: Any, _type: Any, args: Any, *_: Any) -> Any:
    return function(*args) if isinstance(function, _Call) else None


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
    "torch.Size": lambda sizes=(): tuple(sizes),
}
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class _Unpickler(pickle._Unpickler):
    # The one in Python: that in C makes room for as many objects as a damaged index asks for, 30 GB or more.
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _CALLS:
            return _Call(_CALLS[full])
        if full in _DTYPES:
            return _DTYPES[full]
        if full in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
            return _Bytes()
        if full == "collections.OrderedDict":
            return type(name, (_Pairs,), {})
        builtin = module in ("builtins", "__builtin__")
        if module.partition(".")[0] in _HOSTILE_MODULES or (builtin and name in _HOSTILE_BUILTINS):
            raise Hostile(full)
        return type(name.rpartition(".")[2] or "Passed", (Passed,), {"__module__": "focalnet.weights.pickles"})


def _load(file: IO[bytes], **options: Any) -> Any:
    return _Unpickler(file, **options).load()


def read(path: Path) -> Any:
    """The content of a file that ``torch.load(weights_only=True)`` has refused for the objects in it.

    Tensors and plain values are as they are, everything else is a ``Passed``.

    Raises:
        Hostile: it names what runs programs or changes files.
        Exception: it is damaged; an unpickler raises nearly anything.
    """
    module = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="focalnet.weights.pickles")
    return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)


def module_tensors(content: Any) -> dict[str, Tensor]:
    """The state dict of a whole ``torch.nn.Module`` that was pickled; empty for anything else."""
    found: dict[str, Tensor] = {}
    pending = [("", content)]
    seen: set[int] = set()
    while pending:
        prefix, one = pending.pop()
        state = one.state if isinstance(one, Passed) else None
        if not isinstance(state, Mapping) or id(one) in seen or not isinstance(state.get("_modules"), Mapping):
            continue
        seen.add(id(one))
        for part in ("_parameters", "_buffers"):
            values = state.get(part)
            named = values.items() if isinstance(values, Mapping) else ()
            found.update({f"{prefix}{name}": value for name, value in named if isinstance(value, Tensor)})
        pending += [(f"{prefix}{name}.", inner) for name, inner in state["_modules"].items()]
    return found

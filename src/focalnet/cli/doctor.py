"""``focalnet doctor``: shows what is installed, and which devices and backends work."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re

import focalnet
from focalnet.cli.terminal import say


def doctor() -> None:
    """Shows versions, devices and usable kernels."""
    from focalnet.kernels import backend

    sections = {"environment": _environment(), "devices": _devices(), "backends": backend.available(), **_packages()}
    width = max(len(key) for section in sections.values() for key in section)
    for title, section in sections.items():
        say(title)
        for key, value in section.items():
            say(f"  {key:<{width}}  {value}")


def _environment() -> dict[str, str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    return {
        "focalnet": focalnet.__version__,
        "python": f"{platform.python_version()} on {platform.platform(terse=True)}",
        "weights cache": str(HF_HUB_CACHE),
    }


def _devices() -> dict[str, str]:
    import torch

    from focalnet.inference import devices
    from focalnet.kernels import processor

    cpu = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if not processor.computes_bfloat16():
        cpu += ", bfloat16 emulated (float32 is faster)"
    listing = {"torch": torch.__version__, "cpu": cpu}
    for name in devices()[1:]:
        listing[name] = torch.cuda.get_device_name(name) if name.startswith("cuda") else "available"
    return listing


def _packages() -> dict[str, dict[str, str]]:
    """The packages that focalnet requires, by extra, with their installed versions."""
    sections: dict[str, dict[str, str]] = {}
    for line in _requirements():
        requirement, _, condition = line.partition(";")
        name = re.split(r"[^\w.-]", requirement.strip())[0]
        extra = re.search(r"extra == ['\"](\w+)['\"]", condition)
        if name == "focalnet" or (extra and extra[1] == "dev"):  # extras that combine others, and development tools
            continue
        section = f"packages of [{extra[1]}]" if extra else "packages"
        install = f"focalnet[{extra[1]}]" if extra else "focalnet"
        sections.setdefault(section, {})[name] = _version(name) or f'missing: pip install "{install}"'
    return sections


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("focalnet") or []
    except importlib.metadata.PackageNotFoundError:  # running from a source folder that was never installed
        return []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

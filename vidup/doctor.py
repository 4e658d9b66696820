"""Check whether this machine is ready: packages, devices, encoders, models, disk, limits. It changes nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from vidup.errors import VidupError, first_line

if TYPE_CHECKING:
    import torch

State = Literal["ok", "note", "problem"]

_GB = 1e9
_LEAST_DISK = 2 * _GB  # free, for a job
_MODEL_DISK = 10 * _GB  # free, to download the x4 model in both precisions
_LEAST_FILES = 256  # that a process may open, for a job of many streams


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    name: str
    state: State
    """A note costs speed or a model; with a problem vidup does not work properly on this machine."""
    found: str
    todo: str = ""
    """What to do about it."""


def examine() -> list[Finding]:
    """Run all checks. An exception is a finding, too."""
    found: list[Finding] = []
    for look in _LOOKS:
        try:
            found += look()
        except Exception as error:  # broken libraries raise all kinds
            name = look.__name__.strip("_").replace("_", " ")
            kind = "" if isinstance(error, VidupError) else f"{type(error).__name__}: "
            found.append(Finding(name, "problem", f"{kind}{first_line(error)}", "mend what this names"))
    return found


def report(findings: Iterable[Finding]) -> Iterator[str]:
    """Lines with the findings, and whether the machine is ready."""
    problems = 0
    for one in findings:
        problems += one.state == "problem"
        todo = f"; {one.todo}" if one.todo else ""
        yield f"{'' if one.state == 'ok' else one.state:8} {one.name:14} {one.found}{todo}"
    yield "ready" if not problems else f"not ready: {problems} problem{'s' * (problems > 1)}"


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Finding]:
    """Compare the installed versions with the requirements in vidup's metadata."""
    fitting = []
    for wanted in map(Requirement, metadata.requires("vidup") or ()):
        name, bounds, marker = wanted.name, str(wanted.specifier), wanted.marker
        extra = next((one for one in ("", *_EXTRAS) if marker is None or marker.evaluate({"extra": one})), None)
        if extra is None or name == "vidup":
            continue
        version = _version(name)
        if version is None and extra:
            yield Finding(name, "note", "is not installed", f'for {_EXTRAS[extra]}: pip install "vidup[{extra}]"')
        elif version is None:
            yield Finding(name, "problem", "is not installed", f'pip install "{name}{bounds}"')
        elif not fits(version, bounds):
            yield Finding(name, "problem", f"is {version}, needed is {bounds}", f'pip install "{name}{bounds}"')
        else:
            fitting.append(f"{name} {version}")
    yield Finding("packages", "ok", ", ".join(fitting))
    both = [name for name in _OPENCV if _version(name)]
    if len(both) > 1:
        yield Finding(
            "opencv",
            "note",
            f"{' and '.join(both)} write to the same folder",
            f"pip uninstall {' '.join(both)}, then pip install opencv-python-headless",
        )


_EXTRAS = {"checkpoint": "files of weights such as ESRGAN's", "ray": "several workers", "ui": "a page"}
_OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def fits(version: str, bounds: str) -> bool:
    """Whether a version is within bounds such as ``>=18.1,<19``; suffixes such as ``.dev0`` are ignored."""
    return Version(version).base_version in SpecifierSet(bounds)


def _version(name: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> Iterator[Finding]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if getattr(torch.version, "hip", None):
        build = f"ROCm {torch.version.hip}"
    yield Finding("torch", "ok", f"{torch.__version__}, built for {build}; {torch.get_num_threads()} threads")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.get_num_threads() * 2 < cores:
        yield Finding("threads", "note", f"{torch.get_num_threads()} for {cores} cores", "unset OMP_NUM_THREADS")
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            yield Finding("nvidia", "note", "CUDA_VISIBLE_DEVICES hides the card", "unset it")
        else:
            todo = "install torch for CUDA, as the README says" if build == "CPU" else "update the card's driver"
            yield Finding("nvidia", "problem", f"there is a driver, and torch ({build}) does not use the card", todo)


def _torchvision() -> Iterator[Finding]:
    from vidup.engines import libraries

    if version := _version("torchvision"):
        apart = " is built for another torch; vidup does without it" if libraries.set_aside() else ""
        yield Finding("torchvision", "ok", version + apart)


def _libraries() -> Iterator[Finding]:
    from vidup.engines import libraries

    for name, what in (("vidup.engines.x4", "diffusion models"), ("vidup.engines.checkpoint", "files of weights")):
        try:
            libraries.imported(name)
            if name.endswith("checkpoint") and importlib.util.find_spec("spandrel") is not None:
                with libraries.deferred():
                    libraries.imported("spandrel")
        except VidupError as error:
            yield Finding(what, "problem", str(error), "install the versions that vidup asks for")
        else:
            yield Finding(what, "ok", "what runs them can be imported")


def _devices() -> Iterator[Finding]:
    import psutil
    import torch

    from vidup.engines import compiling, devices
    from vidup.engines.card import card as facts_of

    for name in devices():
        device = torch.device(name)
        facts = facts_of(device)
        able = [dtype for dtype in ("float32", "float16", "bfloat16") if _computes(device, getattr(torch, dtype))]
        size, title = psutil.virtual_memory().total, f"{os.cpu_count()} cores"
        if device.type == "cuda":
            card = torch.cuda.get_device_properties(device)
            size, title = card.total_memory, f"{card.name}, compute capability {card.major}.{card.minor}"
        compiled = compiling.compiles("auto", facts, False) != "off"
        more = "; compiles" if compiled else "; does not compile" if device.type == "cuda" else ""
        state: State = "ok" if "float32" in able else "problem"
        yield Finding(name, state, f"{title}, {size / _GB:.1f} GB; computes {', '.join(able) or 'nothing'}{more}")
        if device.type == "cuda" and not compiled:
            yield Finding("compile", "note", "triton or a C compiler is not there: models run uncompiled, slower")


def _computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a convolution on a device is right, compared with float32 on the CPU."""
    import torch

    generator = torch.Generator().manual_seed(0)
    picture, kernel = (torch.rand(shape, generator=generator) for shape in ((1, 8, 16, 16), (8, 8, 3, 3)))
    expected = torch.nn.functional.conv2d(picture, kernel)
    try:
        found = torch.nn.functional.conv2d(picture.to(device, dtype), kernel.to(device, dtype)).float().cpu()
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return bool(torch.allclose(found, expected, rtol=0.02, atol=0.02))


def _encoders() -> Iterator[Finding]:
    from vidup.media.encoder import available

    found = available()
    state: State = "ok" if "libx264" in found else "problem"
    todo = "" if state == "ok" else "pip install --force-reinstall av"
    yield Finding("encoders", state, ", ".join(found) or "none", todo)


def _models() -> Iterator[Finding]:
    from huggingface_hub import constants, try_to_load_from_cache

    from vidup.engines import HOMES

    whole = resources.files("vidup").joinpath("mini", "checkpoint", "model_index.json").is_file()
    todo = "" if whole else "install vidup again: a checkout needs its large files"
    yield Finding("mini", "ok" if whole else "problem", "is there" if whole else "is missing", todo)
    offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    for name, home in HOMES.items():
        if isinstance(try_to_load_from_cache(home, "model_index.json"), str):
            yield Finding(name, "ok", f"{home} is in {constants.HF_HUB_CACHE}")
        else:
            todo = "it can only be a folder or a file" if offline else ""
            yield Finding(name, "note", f"{home} is not here: the first use fetches it{offline}", todo)


def _disk() -> Iterator[Finding]:
    from huggingface_hub import constants

    places = {"folder": Path.cwd(), "temporary": Path(tempfile.gettempdir()), "models": Path(constants.HF_HUB_CACHE)}
    for name, place in places.items():
        there = next((one for one in (place, *place.parents) if one.exists()), Path.cwd())
        free, least = shutil.disk_usage(there).free, _MODEL_DISK if name == "models" else _LEAST_DISK
        if free < least:
            state: State = "problem" if free < _LEAST_DISK and name == "folder" else "note"
            text = f"{free / _GB:.1f} GB are free at {place}, {least / _GB:.0f} are wanted"
            yield Finding("disk", state, text, "make room")
        elif name == "folder":
            yield Finding("disk", "ok", f"{free / _GB:.1f} GB are free here")
    if not os.access(Path.cwd(), os.W_OK):
        yield Finding("folder", "note", f"{Path.cwd()} cannot be written to", "give outputs with -o")


def _limits() -> Iterator[Finding]:
    if sys.platform == "win32":
        return
    import resource

    files, size = resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= files < _LEAST_FILES:
        yield Finding("open files", "note", f"a process may open {files}", f"ulimit -n {4 * _LEAST_FILES}")
    if size != resource.RLIM_INFINITY:
        yield Finding("memory", "note", f"a process may take {size / _GB:.1f} GB of addresses", "ulimit -v unlimited")


_LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python, _packages, _torch, _torchvision, _libraries, _devices, _encoders, _models, _disk, _limits,
)  # fmt: skip

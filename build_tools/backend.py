"""The build backend: setuptools, which in pip's isolated build still sees the torch that the user has installed.

An extension has to be built against a torch of the environment that it will run in, or at least against one that is
there already: a second torch is gigabytes. pip hides the environment from the build, but leaves it where it was.
"""

import importlib.util
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist  # noqa: F401

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"


def see_installed_torch() -> bool:
    """Make the environment's torch importable, if it has one. True if torch can be imported afterwards."""
    for site in dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")):
        if (Path(site) / "torch").is_dir() and site not in sys.path:
            sys.path.append(site)
    importlib.invalidate_caches()
    return importlib.util.find_spec("torch") is not None


def pinned_torch() -> str:
    pin = re.search(r"^torch==\S+", REQUIREMENTS.read_text(), re.MULTILINE)
    if pin is None:
        raise RuntimeError(f"{REQUIREMENTS} pins no torch")
    return pin.group()


def torch_if_missing() -> list[str]:
    return [] if see_installed_torch() else [pinned_torch()]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return torch_if_missing()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return torch_if_missing()


def prepare_metadata_for_build_wheel(directory: str, config_settings: Any = None) -> str:
    see_installed_torch()
    return build_meta.prepare_metadata_for_build_wheel(directory, config_settings)


def prepare_metadata_for_build_editable(directory: str, config_settings: Any = None) -> str:
    see_installed_torch()
    return build_meta.prepare_metadata_for_build_editable(directory, config_settings)


def build_wheel(directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    see_installed_torch()
    return build_meta.build_wheel(directory, config_settings, metadata_directory)


def build_editable(directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    see_installed_torch()
    return build_meta.build_editable(directory, config_settings, metadata_directory)

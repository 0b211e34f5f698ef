"""The build backend: setuptools, which in pip's isolated build still sees the torch that the user has installed.

An extension has to be built against a torch that is there: a second one is gigabytes. pip hides the environment from
the build, but leaves it where it was. Each hook of the backend runs in a process of its own, which imports this file.
"""

import importlib.util
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools.build_meta import (  # noqa: F401  (the hooks)
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

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


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [] if see_installed_torch() else [pinned_torch()]


get_requires_for_build_editable = get_requires_for_build_sdist = get_requires_for_build_wheel
see_installed_torch()

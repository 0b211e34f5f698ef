"""Why torchconv._C could not be loaded, and the one command that mends it."""

from __future__ import annotations

import json
import re
import shlex
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch


def source() -> str:
    """What torchconv was installed from, as pip noted it, or else a word for it."""
    try:
        note = distribution("torchconv").read_text("direct_url.json")
    except PackageNotFoundError:
        note = None
    url = json.loads(note)["url"] if note else "the folder of torchconv's source"
    return shlex.quote(url.removeprefix("file://")) if note else f"<{url}>"


def diagnosis(error: ImportError, folder: Path | None = None) -> str:
    """One paragraph: what was built, what was found, what to type. `folder` is where the extension should lie."""
    folder = folder or Path(__file__).parent
    python = f"Python {sys.version_info.major}.{sys.version_info.minor} and torch {torch.__version__}"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = folder / f"_C{suffix}"
    if built.exists():
        stamp = re.search(rb"torchconv was built with torch ([^\0]+)\.\0", built.read_bytes())
        with_torch = stamp.group(1).decode() if stamp else "(unknown)"
        problem = f"its extension was built with torch {with_torch}, and does not load in {python}"
    elif others := sorted(path.name for path in folder.glob("_C.*.so")):
        problem = f"its extension was built for another Python ({', '.join(others)}), and this is {python}"
    else:
        problem = f"its extension has not been built ({folder} has no _C{suffix}), and this is {python}"
    mend = f"pip install --force-reinstall --no-deps {source()}"
    return f"torchconv cannot be imported: {problem}. Build it again: {mend}\nThe loader said: {error}"

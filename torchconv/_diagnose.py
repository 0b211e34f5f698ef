"""Why torchconv._C could not be loaded, and what to do about it."""

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
    """The folder or URL that torchconv was installed from, quoted for a shell.

    If pip has not recorded it, words that stand for it: <the folder of torchconv's source>.
    """
    try:
        note = distribution("torchconv").read_text("direct_url.json")
    except PackageNotFoundError:
        note = None
    url = json.loads(note)["url"] if note else "the folder of torchconv's source"
    return shlex.quote(url.removeprefix("file://")) if note else f"<{url}>"


def clone(folder: Path) -> Path | None:
    """The clone of the repository in which this folder is the package's source, or None if it is an installation."""
    return folder.parent if (folder.parent / "csrc").is_dir() and (folder.parent / "setup.py").exists() else None


def installed(folder: Path, extension: str) -> Path | None:
    """Another torchconv on the search path, with its extension, which that of `folder` hides."""
    places = (Path(entry, "torchconv").resolve() for entry in sys.path)
    return next((place for place in places if place != folder.resolve() and (place / extension).exists()), None)


def diagnosis(error: ImportError, folder: Path | None = None) -> str:
    """One paragraph: what was built, what was found, what to type. `folder` is where the extension should lie."""
    folder = folder or Path(__file__).parent
    python = f"Python {sys.version_info.major}.{sys.version_info.minor} and torch {torch.__version__}"
    extension = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    built = folder / extension
    if built.exists():
        stamp = re.search(rb"torchconv was built with torch ([^\0]+)\.\0", built.read_bytes())
        with_torch = stamp.group(1).decode() if stamp else "(unknown)"
        problem = f"its extension was built with torch {with_torch}, and does not load in {python}"
    elif others := sorted(path.name for path in folder.glob("_C.*.so")):
        problem = f"its extension was built for another Python ({', '.join(others)}), and this is {python}"
    else:
        problem = f"its extension has not been built ({folder} has no {extension}), and this is {python}"
    advice = f"Build it again: pip install --force-reinstall --no-deps {source()}"
    if (root := clone(folder)) is not None:
        # To install the package elsewhere would not help: this folder would still be found first.
        in_place = f"pip install --force-reinstall --no-deps --editable {shlex.quote(str(root))}"
        advice = f"{folder} is torchconv's source. Build the extension in it: {in_place}"
        if (hidden := installed(folder, extension)) is not None:
            advice = (
                f"{folder} is torchconv's source, and hides the package that is installed in {hidden}. Run Python in "
                f"another folder than {root}; or build the extension here, too: {in_place}"
            )
    return f"torchconv cannot be imported: {problem}. {advice}\nThe loader said: {error}"

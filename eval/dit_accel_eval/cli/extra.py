"""Check that the packages of the extra ``eval`` are installed."""

from __future__ import annotations

import importlib.util

from dit_accel.errors import RunFailed

# Packages whose name on the package index differs from the name of their module.
DISTRIBUTIONS = {"imageio_ffmpeg": "imageio-ffmpeg", "sklearn": "scikit-learn"}
# Metrics, and the page with its plot and its videos.
PAGE = (
    *("imageio", "imageio_ffmpeg", "jinja2", "lpips", "matplotlib"),
    *("scipy", "sklearn", "torchmetrics"),
)


def require_extra(user: str, *modules: str) -> None:
    """Check that modules of the extra ``eval`` are installed, without importing them.

    Args:
        user: what needs the modules, for example "`dit-accel tune`".
        modules: names of top-level modules.

    Raises:
        RunFailed: naming the missing packages and the command that installs them.
    """
    missing = [DISTRIBUTIONS.get(name, name) for name in modules if not is_installed(name)]
    if missing:
        raise RunFailed(f"{user} needs {', '.join(missing)}: pip install 'dit_accel[eval]'")


def is_installed(module: str) -> bool:
    """Return True if a top-level module can be found."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:
        # A loaded module may have no spec.
        return True

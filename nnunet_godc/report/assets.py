"""The scripts of other projects that the page runs, out of the packages that are installed."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution, version

from nnunet_godc.errors import UserError

PLOTLY, NIIVUE = "plotly.min.js", "niivue.js"

# The widget's bundle is a module that offers the widget alone. What it makes its viewer with, it names here.
_VIEWER = re.compile(r'"Creating new Niivue instance".{1,200}?=new ([\w$]+)\(', re.DOTALL)
_IMAGE = re.compile(r"await ([\w$]+)\.loadFromFile\(\{file:[\w$]+,name:")
_EXPORT = re.compile(r"export\s*\{[^}]*\};?\s*$")


def scripts(*, viewer: bool = True) -> dict[str, str]:
    """Their contents by the names of their files; that of the viewer of volumes only where it is wanted.

    Raises:
        UserError: a package is not installed, or is too new to be known.
    """
    plotly = {PLOTLY: _read("plotly", "package_data/plotly.min.js")}
    return {**plotly, NIIVUE: _niivue()} if viewer else plotly


def check_packages() -> None:
    """Raises:
    UserError: a package that pages need is not installed.
    """
    for package in ("plotly", "ipyniivue"):
        try:
            version(package)
        except PackageNotFoundError:
            raise _not_installed(package) from None


def page_options() -> list[str]:
    """For ``nnunet-godc evaluate``: the page as well, where the packages are installed that it needs."""
    try:
        check_packages()
    except UserError:
        return []
    return ["--html"]


def _not_installed(package: str) -> UserError:
    return UserError(f"the page needs {package}, which is missing; install it with: pip install 'nnunet-godc[report]'")


def _read(package: str, path: str) -> str:
    try:
        # Not imported: ipyniivue brings IPython along, plotly takes a second.
        found = next(f for f in distribution(package).files or () if str(f) == f"{package}/{path}")
        return found.locate().read_text(encoding="utf-8")  # type: ignore[attr-defined, no-any-return]
    except (PackageNotFoundError, StopIteration, OSError):
        raise _not_installed(package) from None


def _niivue() -> str:
    """NiiVue as a script that sets `niivue`: pages opened from disk may not load modules."""
    bundle = _read("ipyniivue", "static/widget.js")
    viewer, image, export = _VIEWER.search(bundle), _IMAGE.search(bundle), _EXPORT.search(bundle)
    if not (viewer and image and export):
        raise UserError(
            f"ipyniivue {version('ipyniivue')} is not known here; install one that is: pip install 'ipyniivue<3'"
        )
    licence = next((f for f in distribution("ipyniivue").files or () if f.name.upper().startswith("LICEN")), None)
    text = licence.locate().read_text(encoding="utf-8") if licence else "BSD-2-Clause"  # type: ignore[attr-defined]
    notice = f"/*! NiiVue, out of ipyniivue {version('ipyniivue')}\n\n{text.replace('*/', '* /')} */\n"
    body = bundle[: export.start()]
    return f"{notice}(function(){{{body}\nwindow.niivue={{Niivue:{viewer[1]},NVImage:{image[1]}}};}})();\n"

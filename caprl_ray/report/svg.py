"""A figure of matplotlib as SVG inside of a page: colours of the page's theme, no styles, the same bytes each time."""

import io
import re
import warnings
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from caprl_ray.errors import RecipeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours in a figure stand for the page's own, which are others in light and dark.
INK, LINE, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404"
_THEME = {INK: "var(--soft)", LINE: "var(--line)", FIRST: "var(--accent)", SECOND: "var(--warn)"}
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "caprl_ray",
    "text.parse_math": False,  # labels are names
    "font.size": 9.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
NAMESPACE = "{http://www.w3.org/2000/svg}"
_LINK, _REFERENCE = "{http://www.w3.org/1999/xlink}href", re.compile(r"#([\w-]+)")


def check_matplotlib() -> None:
    """Raise RecipeError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RecipeError("the plots of a report need a package: pip install 'caprl_ray[report]'.") from None


def inline(figure: "Figure", name: str) -> Markup:
    """A figure as an element of a page. `name` tells its references from those of other figures, and is not shown."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser draws the texts
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue().encode())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{NAMESPACE}style", f"{NAMESPACE}metadata"):
                parent.remove(child)
    used = {found for element in root.iter() for text in element.attrib.values() for found in _REFERENCE.findall(text)}
    for element in root.iter():
        _tidy(element, name, used)
    root.attrib |= {"aria-hidden": "true", "focusable": "false"}
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    ElementTree.register_namespace("", NAMESPACE.strip("{}"))
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _tidy(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Styles as attributes, which a page without inline styles may have; references of this figure alone."""
    attributes: dict[str, Any] = element.attrib
    for declaration in filter(None, map(str.strip, attributes.pop("style", "").split(";"))):
        key, _, value = declaration.partition(":")
        attributes[key.strip()] = value.strip()
    attributes.pop("font-family", None)  # the page's own
    identity = attributes.pop("id", None)
    if identity in used:
        attributes["id"] = f"{name}-{identity}"
    if link := attributes.pop(_LINK, None):
        attributes["href"] = link
    for key, told in attributes.items():
        value = _THEME.get(told, told)
        attributes[key] = _REFERENCE.sub(rf"#{name}-\1", value) if key in ("href", "clip-path") else value

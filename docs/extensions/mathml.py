r"""Mathematics as MathML, which browsers draw themselves: a page needs no script and no network to be read.

``\tag{19}`` at the end of a displayed formula is its number, as TeX and code hosts have it.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

_TAG = re.compile(r"\\tag\{([^}]*)\}\s*$")

#: Between a function and its argument where no bracket follows, which browsers set without the space of TeX.
_APPLIED = re.compile(r"<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>[(\[])")


def _mathml(formula: str, *, as_block: bool) -> str:
    return _APPLIED.sub('<mspace width="0.17em"></mspace>', tex2mathml(formula, as_block=as_block))


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _display(translator: Any, node: nodes.math_block) -> None:
    formula = node.astext().strip()
    tag = _TAG.search(formula)
    number = "" if tag is None else f'<span class="eqno">({tag[1]})</span>'
    formula = formula if tag is None else formula[: tag.start()]
    translator.body.append(f'<div class="math">{_mathml(formula, as_block=True)}{number}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Add the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The directive ``commands``: every command with its options, from the parsers themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from xpkern.cli.command_line import build_parser, command_parsers

_WIDTH = 96


class Commands(SphinxDirective):
    """A section for every command, in the order of the help."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        return [_section(command) for command in command_parsers(build_parser())]


def _section(parser: argparse.ArgumentParser) -> nodes.section:
    section = nodes.section("", nodes.title("", parser.prog), ids=[nodes.make_id(parser.prog)], names=[parser.prog])
    section += nodes.paragraph("", parser.description or "")
    parser.formatter_class = partial(parser.formatter_class, width=_WIDTH)  # type: ignore[assignment]
    section += _literal(parser.format_usage().removeprefix("usage: "))
    for group in parser._action_groups:
        items = [_item(parser, action) for action in group._group_actions if _is_told(action)]
        if items:
            section += nodes.definition_list("", *items)
    if parser.epilog:
        section += _literal(parser.epilog)
    return section


def _is_told(action: argparse.Action) -> bool:
    """Whether an option or argument is for users; commands of a command have sections of their own."""
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction)


def _item(parser: argparse.ArgumentParser, action: argparse.Action) -> nodes.definition_list_item:
    terms = list(_invocations(parser, action))
    term = nodes.term("")
    for number, text in enumerate(terms):
        term += [nodes.Text(", ")] * (number > 0) + [nodes.literal("", text)]
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph("", text)))


def _invocations(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    formatter = parser._get_formatter()
    if not action.option_strings:
        yield formatter._format_args(action, action.dest)
    for option in action.option_strings:
        arguments = "" if action.nargs == 0 else " " + formatter._format_args(action, action.dest.upper())
        yield option + arguments


def _literal(text: str) -> nodes.literal_block:
    return nodes.literal_block(text.strip("\n"), text.strip("\n"), language="none")


def setup(app: Any) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""A command line made from a dataclass: its fields are the flags, their comments the help."""

import argparse
import inspect
import re
from dataclasses import fields
from typing import get_args

from engine.files import Field, check_value


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def whole_number(text):
    """A count as people write it: 5000000, 5e6 or 5_000_000."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number.is_integer() or number < 0 or number > 1e15:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return int(number)


def flag_name(field):
    """--max-lr for max_lr."""
    return "--" + field.replace("_", "-")


def add_flags(parser, dataclass, **special):
    """Adds a flag for each field: the comment on its line is its help, a comment line of its own heads a group.

    special: {field: options of add_argument} where a field's type does not say them."""
    described = {field.name: field for field in fields(dataclass)}
    for line in inspect.getsource(dataclass).splitlines():
        if heading := re.fullmatch(r"    # ([A-Z][\w ]+)", line):
            group = parser.add_argument_group(heading[1])
        elif match := re.fullmatch(r"    (\w+): .*?  # (.*)", line):
            name, text = match.groups()
            field = described.pop(name)
            default, kind = field.default, value_type(field)
            text = text.replace("%", "%%") + ("" if default in (None, False, "") else f" ({default})")
            if name in special:
                options = special[name]
            elif kind is bool:
                options = {"action": "store_true"}
            elif kind is str:
                options = {"metavar": "NAME"}
            else:
                options = {"type": whole_number if kind is int else float, "metavar": "X"}
            group.add_argument(flag_name(name), default=None, help=text, **options)
    assert not described, f"fields without a comment on their line are no flags: {', '.join(described)}"


def given_flags(parsed, dataclass):
    """{field: value} of what a command line gave, in the order of the dataclass."""
    return {f.name: getattr(parsed, f.name) for f in fields(dataclass) if getattr(parsed, f.name) is not None}


def changed_flags(values):
    """{field: value} of what differs from the dataclass's defaults."""
    return {f.name: getattr(values, f.name) for f in fields(values) if getattr(values, f.name) != f.default}


def as_words(values):
    """The command line that gives {field: value}."""
    return tuple(flag_name(n) if value is True else f"{flag_name(n)}={value}" for n, value in values.items())


def value_type(field):
    """int for a field that is int or int | None."""
    return next((kind for kind in get_args(field.type) if kind is not type(None)), field.type)


def field_table(dataclass, limits, choices):
    """{name: Field} of a dataclass. limits: {name: (low, high)}, other numbers being counts from 1; choices: {name:
    the values to choose from}."""
    table = {}
    for field in fields(dataclass):
        low, high = limits.get(field.name, (1, 10**15))
        optional = type(None) in get_args(field.type)
        table[field.name] = Field(value_type(field), low, high, choices.get(field.name, ()), optional)
    return table


def check_flags(values, table):
    """Raises ValueError for the first of the dataclass's values that its table does not admit."""
    for name, field in table.items():
        check_value(getattr(values, name), field, flag_name(name))

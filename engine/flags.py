"""A command line made from a dataclass: its fields are the flags."""

import argparse
import re
from dataclasses import field, fields
from functools import partial
from typing import get_args

from engine.files import value_of

# What others call our flags.
OTHER_NAMES = {"--lr": "--max-lr", "--learning-rate": "--max-lr", "--steps": "--tokens", "--epochs": "--tokens"}
OTHER_NAMES["--gradient-accumulation-steps"] = "--micro-batch-size"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        for name, ours in OTHER_NAMES.items():
            if re.search(rf"{name}(?![\w-])", message):
                message += f"; {name} is {ours} here"
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def whole_number(text, low=0):
    """A count as people write it: 5000000, 5e6 or 5_000_000."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number.is_integer() or not low <= number <= 1e15:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {low}")
    return int(number)


COUNT = {"type": partial(whole_number, low=1), "metavar": "N"}  # options of a flag that counts from 1


def flag(default, help, *, low=1, high=10**15, choices=(), group=None):
    """A dataclass field that is a flag, with the limits of a number or the choices of a text; None by default where it
    depends on other flags. group: the heading in --help above this flag and those after it."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices, "group": group})


def flag_name(name):
    """--max-lr for max_lr."""
    return "--" + name.replace("_", "-")


def kind_of(field):
    """int for a field that is int or int | None."""
    return (get_args(field.type) or (field.type,))[0]


def add_flags(parser, dataclass):
    """Adds a flag for each field."""
    for each in fields(dataclass):
        if heading := each.metadata["group"]:
            group = parser.add_argument_group(heading)
        text, kind = each.metadata["help"], kind_of(each)
        if each.metadata["choices"]:
            text += f": {', '.join(each.metadata['choices'])}"
        if each.default not in (None, False):
            text += f" ({each.default})"
        options = {"metavar": "NAME" if kind is str else "X", "type": whole_number if kind is int else kind}
        if kind is bool:
            options = {"action": "store_true"}
        elif each.name == "resume":
            options = {"metavar": "FOLDER", "nargs": "?", "const": ""}
        group.add_argument(flag_name(each.name), default=None, help=text.replace("%", "%%"), **options)


def check_flags(values):
    """Raises ValueError for the first value of a dataclass that its field does not admit."""
    for each in fields(values):
        name, value, choices = flag_name(each.name), getattr(values, each.name), each.metadata["choices"]
        if value is None and each.default is None:
            continue
        value_of({name: value}, name, kind_of(each), each.metadata["low"], each.metadata["high"])
        if choices and value not in choices:
            raise ValueError(f"{name} is {value!r:.60}; expected one of {', '.join(choices)}")


def given_flags(parsed, dataclass):
    """{name: value} of what a command line gave, in the order of the dataclass."""
    return {f.name: getattr(parsed, f.name) for f in fields(dataclass) if getattr(parsed, f.name) is not None}


def changed_flags(values):
    """{name: value} of what differs from the dataclass's defaults."""
    return {f.name: getattr(values, f.name) for f in fields(values) if getattr(values, f.name) != f.default}


def as_words(values):
    """The command line that gives {name: value}."""
    return tuple(flag_name(n) if value is True else f"{flag_name(n)}={value}" for n, value in values.items())

"""The command line of `driveway-hil package`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hil.packages import RECIPES

ABOUT = "build packages: the recipes that come with the rigs, or one of your own ONNX model"
MORE = """\
A package is built from a model, proven with a golden vector, and put into OUT/NAME whole, where a daemon whose
packages_dir is OUT finds it. A recipe's golden answers have to be right, or there is no package.
"""
SHAPE_HELP = "an item's, where MODEL.onnx leaves it open"


def add_verb(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb, without what carries it out."""
    verb: argparse.ArgumentParser = verbs.add_parser("package", help=ABOUT, description=f"{ABOUT.capitalize()}. {MORE}")
    verb.add_argument("what", metavar="WHAT", help=f"{', '.join(RECIPES)}, all, or MODEL.onnx")
    verb.add_argument("out", type=Path, metavar="OUT", help="the folder for packages; made when it is not there")
    verb.add_argument(
        "--sign", type=Path, metavar="KEY", help="the publisher's private key (PEM); made, with KEY's .pub, if missing"
    )
    add_shape(verb)
    verb.add_argument("--json", type=Path, metavar="FILE", help="write what was built as JSON")
    return verb


def add_shape(verb: argparse.ArgumentParser) -> None:
    """The option that says what an item of a model with open sizes has."""
    verb.add_argument("--shape", action="append", type=shape, default=[], metavar="INPUT=A,B,…", help=SHAPE_HELP)


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An argparse type: an input's name, and the sizes of its tensor."""
    name, _, sizes = text.rpartition("=")
    if not name or not all(size.isascii() and size.isdigit() and int(size) for size in sizes.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write for example x=3,224,224")
    return name, tuple(int(size) for size in sizes.split(","))


def check(options: argparse.Namespace, verb: argparse.ArgumentParser) -> None:
    """Refuse, with exit status 2, what does not go together."""
    model = options.what.endswith(".onnx")
    if not model and options.what not in (*RECIPES, "all"):
        verb.error(f"there is no recipe {options.what!r}: give {', '.join(RECIPES)}, all, or the path of an .onnx file")
    if options.shape and not model:
        verb.error("--shape is for MODEL.onnx: a recipe knows its shapes")

"""The command line of `driveway-hil submit`."""

from __future__ import annotations

import argparse
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from agent.cli import when
from agent.errors import ConfigError
from hil.packages.arguments import add_shape
from hil.submit.endpoint import check_url

ABOUT = "put a folder of images or tensors to work, and collect the answers"
MORE = """\
Files go to the dispatcher in jobs of bounded size; cars compute them as they come to it. Without --wait the answers
are collected later, with --collect and the name that is printed; Ctrl-C leaves the jobs running too.
"""
MOST_PRICE = 10
LONGEST_LEASE_MS = 86_400_000


def add_verb(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb, without what carries it out."""
    verb: argparse.ArgumentParser = verbs.add_parser("submit", help=ABOUT, description=f"{ABOUT.capitalize()}. {MORE}")
    verb.add_argument("files", nargs="*", type=Path, metavar="FOLDER_OR_FILE", help="images, or .npy and .npz tensors")
    verb.add_argument("--package", metavar="PACKAGE", help="a rig's package by its name, a folder, or MODEL.onnx")
    add_shape(verb)
    where = verb.add_argument_group("where")
    where.add_argument("--dir", type=Path, metavar="RIG", help="the folder of a rig whose dispatcher runs")
    where.add_argument("--url", metavar="URL", help="a dispatcher's HTTP address, with --token-file")
    where.add_argument("--token-file", type=Path, metavar="FILE", help="the dispatcher's operator.token")
    where.add_argument(
        "--dispatcher-key", type=Path, metavar="FILE", help="with --url: its public key, which signs its verdicts"
    )
    terms = verb.add_argument_group("terms")
    terms.add_argument(
        "--slice-items", type=when.whole(1, 100_000), metavar="N", help="items of a slice: about a second"
    )
    terms.add_argument("--price", type=_price, default=0, metavar="PRICE", help="for each answered item (default: 0)")
    terms.add_argument("--currency", type=_currency, default="USD", help="default: USD")
    terms.add_argument("--ttl", type=_lease, default="10m", metavar="DURATION", help="how long a lease lasts (10m)")
    terms.add_argument(
        "--class", dest="workload_class", metavar="CLASS", help="the kind of work, for owners who choose"
    )
    terms.add_argument("--customer", default="rig", help="whose work it is; a car keeps customers apart (default: rig)")
    terms.add_argument(
        "--sealed", action="store_true", help="encrypt inputs to the car that works on them; others get none"
    )
    results = verb.add_argument_group("results")
    results.add_argument("--wait", action="store_true", help="wait for the answers")
    results.add_argument("--collect", metavar="SUBMISSION", help="collect what an earlier submission gave, so far")
    results.add_argument("--out", type=Path, metavar="FILE", help="answers as JSON lines, signed verdicts beside them")
    results.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    return verb


def check(options: argparse.Namespace, verb: argparse.ArgumentParser) -> None:
    """Refuse, with exit status 2, what does not go together."""
    if options.collect is not None:
        if options.files or options.package:
            verb.error("--collect takes no files and no package: it collects what was submitted")
        for name in ("shape", "slice_items", "price", "currency", "ttl", "workload_class", "customer", "sealed"):
            if getattr(options, name) != _usual(verb, name):
                said = "--class" if name == "workload_class" else f"--{name.replace('_', '-')}"
                verb.error(f"{said} cannot be changed by --collect: it was said when the work was submitted")
    elif not options.files or not options.package:
        verb.error("give a folder or files, and --package")
    elif options.dir is None and options.url is None:
        verb.error("say where the dispatcher is: --dir RIG, or --url URL --token-file FILE")
    elif options.out is not None and not options.wait:
        verb.error("--out needs --wait: without it there is no answer yet")
    _check_where(options, verb)


def _check_where(options: argparse.Namespace, verb: argparse.ArgumentParser) -> None:
    if options.dir is not None and (options.url is not None or options.token_file is not None):
        verb.error("--dir RIG says where the dispatcher is, and --url with --token-file: give one of them")
    if (options.url is None) != (options.token_file is None):
        verb.error("--url and --token-file, the dispatcher's operator.token, go together")
    if options.dispatcher_key is not None and options.url is None:
        verb.error("--dispatcher-key goes with --url: a rig's is in its folder")
    if options.url is not None:
        try:
            check_url(options.url)
        except ConfigError as error:
            verb.error(str(error))


def _usual(verb: argparse.ArgumentParser, name: str) -> Any:
    """What an option is when nobody says it."""
    usual = verb.get_default(name)
    return _lease(usual) if name == "ttl" else usual


def _price(text: str) -> int:
    """Millionths of the currency."""
    try:
        price = Decimal(text)
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"{text!r} is no price; write for example 0.00025") from None
    if not price.is_finite() or not 0 <= price <= MOST_PRICE or price * 1_000_000 % 1:
        raise argparse.ArgumentTypeError(f"{text} cannot be a price: 0 to {MOST_PRICE}, in millionths")
    return int(price * 1_000_000)


def _currency(text: str) -> str:
    if len(text) != 3 or not text.isascii() or not text.isalpha() or not text.isupper():
        raise argparse.ArgumentTypeError(f"{text!r} is no currency; write for example EUR")
    return text


def _lease(text: str) -> int:
    """Seconds."""
    lasts_ms = when.duration(text)
    if lasts_ms > LONGEST_LEASE_MS:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than 1d, and no lease is")
    return lasts_ms // 1000

"""docs/schemas/: JSON Schemas of what is said on the control socket, made from the structs that the daemon uses.

    python -m hil.control_schema            prints which files are not as they should be
    python -m hil.control_schema --write    writes them

`request.schema.json` is one line to the daemon, `answer.schema.json` the envelope of one line from it, and
`VERB.schema.json` its `data`, which is what `driveway VERB --json` prints. Requests are closed: a field that nobody
knows is refused. Answers are open: a later version may say more, and whoever reads them ignores what it does not know.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from agent.answers import Recorded, SelfTestView
from agent.control import HELLO, VERBS, ControlAnswer, ControlRequest, Hello, Verb
from agent.key_view import KeysView
from agent.ledger_view import LedgerShown, Proof
from agent.owner import OwnerView
from agent.package_list import PackageView
from agent.rotation import Rotated
from agent.timeline import TimelineView
from agent.updates import UpdateAnswer, UpdateView
from agent.view import EarningsList, LeaseEarningsView, ReasonView, SignalView, StatusView

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
REQUEST, ANSWER = "request", "answer"

DATA: dict[Verb, Any] = {
    "status": StatusView,
    "why": list[ReasonView],
    "signals": list[SignalView],
    "timeline": TimelineView,
    "leases": list[LeaseEarningsView],
    "earnings": EarningsList,
    "ledger": LedgerShown,
    "ledger_prove": Proof,
    "pause": OwnerView,
    "resume": OwnerView,
    "finish": OwnerView,
    "owner": OwnerView,
    "owner_set": OwnerView,
    "owner_clear": OwnerView,
    "consent_accept": OwnerView,
    "consent_withdraw": OwnerView,
    "record": Recorded,
    "packages": list[PackageView],
    "keys": KeysView,
    "keys_rotate": Rotated,
    "self_test": SelfTestView,
    "update": UpdateAnswer,
    "update_show": UpdateView,
    "update_defer": UpdateView,
    "update_now": UpdateView,
}
"""What each verb answers."""


def documents() -> dict[str, str]:
    """Every file's name and text."""
    kinds: dict[str, tuple[Any, str]] = {
        REQUEST: (ControlRequest, "One line to the daemon"),
        ANSWER: (_envelope(), "One line from the daemon"),
        HELLO: (Hello, "Who answers, and what it may be asked"),
        **{verb: (DATA[verb], f"What `driveway` shows of {verb.replace('_', ' ')}") for verb in VERBS},
    }
    return {
        f"{name}.schema.json": json.dumps(_document(kind, title), indent=2) + "\n"
        for name, (kind, title) in kinds.items()
    }


def wrong(folder: Path = FOLDER) -> list[str]:
    """The files that are missing, differ, or should not be there."""
    wanted = documents()
    there = {path.name: path.read_text("utf-8") for path in folder.glob("*.schema.json")}
    return sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))


def _envelope() -> type[msgspec.Struct]:
    """`ControlAnswer` with data of any kind: the daemon's own holds text that is encoded already."""
    fields = [
        (field.name, Any, None) if field.name == "data" else (field.name, field.type, field.default)
        for field in msgspec.structs.fields(ControlAnswer)
        if not field.required
    ]
    doc = {"__doc__": ControlAnswer.__doc__}
    return msgspec.defstruct(ControlAnswer.__name__, [("ok", bool), *fields], namespace=doc)


def _document(kind: Any, title: str) -> dict[str, Any]:
    (schema,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    return {"$schema": DIALECT, "title": title, **schema, "$defs": dict(sorted(definitions.items()))}


def main(arguments: list[str]) -> int:
    """Write them, or say which are wrong; the exit status."""
    if arguments == ["--write"]:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in wrong():
            (FOLDER / name).unlink(missing_ok=True)
        for name, text in documents().items():
            (FOLDER / name).write_text(text, "utf-8")
        return 0
    found = wrong()
    print("\n".join(found) or "all as they should be")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

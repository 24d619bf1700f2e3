"""An operator with a real catalogue, a car that believes it, and a network between them that a test may spoil."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

from agent.trust.catalogue import Catalogue, NotThereError, TooLongError
from agent.trust.catalogue_client import CatalogueClient
from agent.trust.catalogue_store import CatalogueStore
from hil.catalogue.repository import Repository

START = dt.datetime(2026, 12, 1, 12, tzinfo=dt.UTC)
URL = "https://catalogue.example/fleet"
OCR = "packages/ocr/1.4.0/manifest.json"
Spoil = Callable[[bytes], bytes]


class World:
    """`now` is the operator's clock. `spoiled` changes what the network brings, by the end of its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = START
        self.operator = Repository.create(folder / "operator", now=lambda: self.now)
        self.root = (self.operator.metadata / "1.root.json").read_bytes()
        self.spoiled: dict[str, Spoil] = {}
        self.frozen: dict[str, bytes] | None = None
        self.asked: list[str] = []

    def car(self, name: str = "car", policy: str = "") -> CatalogueClient:
        return CatalogueClient(self.root, URL, CatalogueStore(self.folder / name), policy=policy)

    def ms(self, days: float = 0.0) -> int:
        """The operator's time, so many days later."""
        return int((self.now + dt.timedelta(days=days)).timestamp() * 1000)

    def refresh(self, car: CatalogueClient, days: float = 0.0) -> Catalogue:
        return car.refresh(self.ms(days), self.fetch, lambda _catalogue: None)

    def fetch(self, url: str, most_bytes: int) -> bytes:
        name = url.removeprefix(f"{URL}/")
        assert name != url
        self.asked.append(name)
        body = self.published().get(name) if self.frozen is None else self.frozen.get(name)
        for end, spoil in self.spoiled.items():
            if body is not None and name.endswith(end):
                body = spoil(body)
        if body is None:
            raise NotThereError(f"GET {url} was answered 404")
        if len(body) > most_bytes:
            raise TooLongError(f"GET {url}: more than the {most_bytes} bytes it may have")
        return body

    def published(self) -> dict[str, bytes]:
        files = (path for path in self.operator.public.rglob("*") if path.is_file())
        return {str(path.relative_to(self.operator.public)): path.read_bytes() for path in files}

    def freeze(self) -> dict[str, bytes]:
        """From now on the network brings what is published now."""
        self.frozen = self.published()
        return self.frozen

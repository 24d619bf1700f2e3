"""The bill of materials: CycloneDX 1.6 as JSON, of what is really in the tree.

Each component is a distribution that lies in the tree, with the version, licence and dependencies of its own metadata,
and name and SHA-256 of its wheel (the lock's). The compiled kernels are components by their manifest. The same tree at
the same commit gives the same bytes: the serial number is made of the content, the time is the commit's.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from systemd.package.target import BuildError, Release

SPDX_OF_CLASSIFIER = {
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
    "License :: OSI Approved :: GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
}
SPDX_OF_TEXT = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "mit": "MIT",
    "mit license": "MIT",
    "the mit license": "MIT",
    "3-clause bsd license": "BSD-3-Clause",
}
REQUIRES = re.compile(r"^[A-Za-z0-9._-]+")
NAMESPACE = uuid.UUID("6f7d0c5e-54f8-5d0d-9d3b-6b0e3f1f7b11")
"""Of this project's bills; made once."""


def canonical(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def purl(name: str, version: str) -> str:
    """A package URL of PyPI's type."""
    return f"pkg:pypi/{canonical(name)}@{version.replace('+', '%2B')}"


@dataclass(frozen=True)
class Source:
    """A site-packages folder, and the wheels that were unpacked there."""

    site: Path
    wheels: tuple[Path, ...]


def describe(sources: Sequence[Source], release: Release) -> str:
    """The bill of what is in these folders. Raises BuildError for a distribution that came in no wheel."""
    version = release.version
    components: list[dict[str, Any]] = []
    edges: dict[str, list[str]] = {}
    for source in sources:
        found, names = _distributions(source)
        components += [_component(metadata, wheel) for metadata, wheel in found]
        edges |= {names[canonical(metadata["Name"])]: _needs(metadata, names) for metadata, _ in found}
    kernels = [one for source in sources[:1] for one in _kernels(source.site / "kernels/compiled")]
    ours = next(one["bom-ref"] for one in components if one["name"] == "driveway-agent")
    edges[ours] = sorted({*edges, *(one["bom-ref"] for one in kernels)} - {ours})
    body: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": dt.datetime.fromtimestamp(release.epoch_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": f"driveway@{version}",
                "name": "driveway",
                "version": version,
                "purl": f"pkg:deb/driveway/driveway@{version}?arch={release.target.arch}",
                "licenses": [{"expression": "Apache-2.0"}],
            },
        },
        "components": [*components, *kernels],
        "dependencies": [
            {"ref": f"driveway@{version}", "dependsOn": [ours]},
            *({"ref": ref, "dependsOn": edges[ref]} for ref in sorted(edges)),
            *({"ref": one["bom-ref"], "dependsOn": []} for one in kernels),
        ],
    }
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    body["serialNumber"] = f"urn:uuid:{uuid.uuid5(NAMESPACE, digest)}"
    return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def licence(metadata: Message) -> list[dict[str, Any]]:
    """In SPDX where it can be told, in the distribution's own words where not; empty: it says nothing."""
    if expression := metadata.get("License-Expression"):
        return [{"expression": expression}]
    text = (metadata.get("License") or "").strip().partition("\n")[0]
    if spdx := SPDX_OF_TEXT.get(text.lower()):
        return [{"license": {"id": spdx}}]
    known = [SPDX_OF_CLASSIFIER[one] for one in metadata.get_all("Classifier", []) if one in SPDX_OF_CLASSIFIER]
    if known:
        return [{"license": {"id": known[0]}}]
    return [{"license": {"name": text}}] if text else []


def _distributions(source: Source) -> tuple[list[tuple[Message, Path]], dict[str, str]]:
    """Every distribution of a folder with its wheel, and each one's reference by its name."""
    wheels = {tuple(wheel.name.split("-")[:2]): wheel for wheel in source.wheels}
    by_name = {(canonical(name), version): wheel for (name, version), wheel in wheels.items()}
    found, names = [], {}
    for path in sorted(source.site.glob("*.dist-info/METADATA")):
        metadata = HeaderParser().parsestr(path.read_text("utf-8"))
        wheel = by_name.get((canonical(metadata["Name"]), metadata["Version"]))
        if wheel is None:
            raise BuildError(f"in the tree, and from no wheel: {path.parent.name}")
        found.append((metadata, wheel))
        names[canonical(metadata["Name"])] = _reference(metadata, wheel)
    return found, names


def _reference(metadata: Message, wheel: Path) -> str:
    return f"{purl(metadata['Name'], metadata['Version'])}?file_name={wheel.name.replace('+', '%2B')}"


def _component(metadata: Message, wheel: Path) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _reference(metadata, wheel),
        "name": canonical(metadata["Name"]),
        "version": metadata["Version"],
        "purl": _reference(metadata, wheel),
        "hashes": [{"alg": "SHA-256", "content": _sha256(wheel)}],
    }
    if licences := licence(metadata):
        component["licenses"] = licences
    return component


def _kernels(folder: Path) -> Iterable[dict[str, Any]]:
    """Each file of compiled kernels, as their manifest has it."""
    manifest = folder / "manifest.json"
    listed = json.loads(manifest.read_bytes())["files"] if manifest.is_file() else []
    for one in listed:
        yield {
            "type": "file",
            "bom-ref": f"kernels/{one['name']}",
            "name": one["name"],
            "version": one["cuda"],
            "hashes": [{"alg": "SHA-256", "content": one["sha256"]}],
        }


def _needs(metadata: Message, names: Mapping[str, str]) -> list[str]:
    """What of the tree a distribution asks for; extras that nobody chose are not in the tree, and so not named."""
    asked = (REQUIRES.match(one) for one in metadata.get_all("Requires-Dist", []))
    found = {names.get(canonical(one[0])) for one in asked if one is not None}
    return sorted({one for one in found if one is not None} - {names[canonical(metadata["Name"])]})


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

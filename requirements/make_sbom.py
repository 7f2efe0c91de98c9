"""Write a software bill of materials for each part: `make sbom`.

Packages, hashes and the graph come from the locks, and licences from the packages installed here. The same locks and
packages make the same files, to the byte.
"""

from __future__ import annotations

import json
import sys
import uuid
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from locks import FOLDER, PROJECT, Package, read_lock
from packageurl import PackageURL

from gleaner import __version__

PARTS = ("serve", "train", "parquet", "monitoring")
_DECLARED = LicenseAcknowledgement.DECLARED
_LONGEST_LICENSE = 100  # a longer one is the text of a licence, and not its name


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        path = folder / f"{part}.cdx.json"
        packages = read_lock(FOLDER / f"{part}.lock")
        path.write_text(describe(part, packages))
        print(f"{path}: {len(packages)} packages")


def describe(part: str, packages: list[Package]) -> str:
    """Return the CycloneDX document of a part."""
    project = Component(
        name=PROJECT,
        version=__version__,
        type=ComponentType.APPLICATION,
        bom_ref=PROJECT,
        licenses=[LicenseFactory().make_with_id("Apache-2.0")],
        properties=[Property(name="gleaner:part", value=part)],
    )
    components = {(package.name, package.version): _component(package) for package in packages}
    bom = Bom(components=components.values())
    bom.metadata.component = project
    for package in packages:
        parents = [component for (name, _), component in components.items() if name in package.via]
        for parent in [*parents, *([project] if PROJECT in package.via else [])]:
            bom.register_dependency(parent, [components[package.name, package.version]])

    found = json.loads(JsonV1Dot6(bom).output_as_string())
    del found["metadata"]["timestamp"], found["serialNumber"]
    text = json.dumps(found, sort_keys=True)
    found["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_OID, text).urn
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def _component(package: Package) -> Component:
    purl = PackageURL("pypi", name=package.name, version=package.version)
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(purl.to_string()),
        comment="every file that the lock allows",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=content) for content in package.hashes],
    )
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=purl.to_string(),
        purl=purl,
        licenses=_licenses(package),
        external_references=[files],
        properties=[Property(name="gleaner:marker", value=package.marker)] if package.marker else [],
    )


def _licenses(package: Package) -> list[License]:
    """Return the licences that a package declares; none if another version is installed here."""
    try:
        about = distribution(package.name).metadata
    except PackageNotFoundError:
        return []
    if about["Version"] != package.version:
        return []
    text = about.get("License-Expression") or about.get("License") or ""
    if 0 < len(text) <= _LONGEST_LICENSE and "\n" not in text and text != "UNKNOWN":
        return [LicenseFactory().make_from_string(text, license_acknowledgement=_DECLARED)]
    lines = [line for line in about.get_all("Classifier", []) if line.startswith("License :: ")]
    names = [line.rpartition(" :: ")[2] for line in lines if line != "License :: OSI Approved"]
    return [DisjunctiveLicense(name=name, acknowledgement=_DECLARED) for name in names]


if __name__ == "__main__":
    main(Path(sys.argv[1]))

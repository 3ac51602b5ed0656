# SPDX-License-Identifier: LGPL-2.1-or-later
"""The element in a VM's metadata that has its own settings: from XML and to XML, held against the
schema.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from ..domainxml import SETTINGS_URI, add_setting
from ..errors import Error, printable

PREFIX = "cgroup-hooks"
SCHEMA = "domain-settings.rng"


def read(xml: str) -> dict[str, str]:
    """What libvirt's metadata API answers, which is without the namespace; the hook's reader finds
    the same.
    """
    etree = _etree()
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True
    )
    try:
        holder = etree.fromstring(xml.encode(), parser)
    except etree.XMLSyntaxError as error:
        message = f"cannot read the settings in the VM's metadata: {printable(str(error))}"
        raise Error(message, "fix it with virsh edit") from None
    found: dict[str, str] = {}
    for element in holder:
        add_setting(
            found,
            _key(element, etree.QName(element)),
            (element[-1].tail if len(element) else element.text) or "",
        )
    return found


def _key(element: Any, name: Any) -> str:
    ours = not name.namespace or name.namespace == SETTINGS_URI
    return (
        str(name.localname) if ours or not element.prefix else f"{element.prefix}:{name.localname}"
    )


def write(settings: dict[str, str]) -> str:
    """The element as libvirt's metadata API takes it. Raises Error where it would not be as the
    schema has it.
    """
    _check(_element(settings, SETTINGS_URI))
    text: str = _etree().tostring(_element(settings, None), encoding="unicode")
    return text


def _element(settings: dict[str, str], namespace: str | None) -> Any:
    """libvirt adds the namespace itself, and takes none that is there already."""
    etree = _etree()
    holder = etree.Element(
        etree.QName(namespace, "settings"), nsmap={PREFIX: namespace} if namespace else None
    )
    for key, value in settings.items():
        etree.SubElement(holder, etree.QName(namespace, key)).text = value
    return holder


def _check(element: Any) -> None:
    etree = _etree()
    schema = etree.RelaxNG(etree.fromstring((resources.files(__package__) / SCHEMA).read_bytes()))
    if not schema.validate(element):
        reason = printable(str(schema.error_log.last_error.message))
        raise Error(f"the settings do not conform to {SCHEMA}: {reason}", "please report it")


def _etree() -> Any:
    try:
        from lxml import etree
    except ImportError:
        raise Error("cannot write XML: lxml is not installed", "install python3-lxml") from None
    return etree

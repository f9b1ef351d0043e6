"""What a browser without script sends of a form: the controls of a page as they stand, and what a person changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html.parser import HTMLParser

_TICKED = ("checkbox", "radio")
_TEXTS = ("text", "hidden", "number", "url")


class _Controls(HTMLParser):
    """Collects the name and value of every control of one form that would be sent."""

    def __init__(self, form_id: str) -> None:
        super().__init__()
        self.sent: list[tuple[str, str]] = []
        self._form_id = form_id
        self._inside = False
        self._select: str | None = None
        self._chosen: str | None = None
        self._area: tuple[str, list[str]] | None = None

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "form":
            self._inside = values.get("id") == self._form_id
        name = values.get("name")
        if not self._inside or "disabled" in values:
            return
        if tag == "input" and name:
            kind = values.get("type") or "text"
            assert kind in (*_TICKED, *_TEXTS), kind
            if kind == "number" and values.get("step") != "any":  # a browser refuses to send a fraction then
                assert float(values.get("value") or 0).is_integer(), f"{name} takes whole numbers"
            if kind not in _TICKED:
                self.sent.append((name, values.get("value") or ""))
            elif "checked" in values:
                self.sent.append((name, "on" if values.get("value") is None else str(values["value"])))
        elif tag == "select" and name:
            self._select, self._chosen = name, None
        elif tag == "option" and self._select and ("selected" in values or self._chosen is None):
            self._chosen = values.get("value") or ""
        elif tag == "textarea" and name:
            self._area = (name, [])

    def handle_data(self, data: str) -> None:
        if self._area:
            self._area[1].append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False
        elif tag == "select" and self._select:
            self.sent.append((self._select, self._chosen or ""))
            self._select = None
        elif tag == "textarea" and self._area:
            # A browser drops one line feed after the tag, and sends every line with both characters.
            text = "".join(self._area[1]).removeprefix("\n").replace("\r\n", "\n").replace("\n", "\r\n")
            self.sent.append((self._area[0], text))
            self._area = None


def controls(page: str, form_id: str) -> dict[str, list[str]]:
    """What the form would send, by name."""
    parser = _Controls(form_id)
    parser.feed(page)
    found: dict[str, list[str]] = {}
    for name, value in parser.sent:
        found.setdefault(name, []).append(value)
    return found


def pairs(found: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """The same as pairs, for an address."""
    for name, values in found.items():
        yield from ((name, value) for value in values)

"""Things and their settings as words, `gptq:bits=3,group=32`, and back."""

from dataclasses import fields
from typing import Any

from laconic.registry import Kind, find, name_of


def build(spec: str, kind: Kind = Kind.METHOD) -> Any:
    """What `NAME:KEY=VALUE,KEY=VALUE` spells: the thing of that name with these settings.

    Raises:
        UsageError: an unknown name, setting or value; the message has the nearest right one.
    """
    name, settings = parse(spec)
    return find(name, kind).load().from_settings(settings)


def parse(spec: str) -> tuple[str, dict[str, str]]:
    """The name and the settings, not checked yet, of `NAME:KEY=VALUE,KEY=VALUE`.

    Example:
        >>> parse("gptq:bits=3,group=32")
        ('gptq', {'bits': '3', 'group': '32'})
    """
    name, _, text = spec.partition(":")
    pairs = [part.partition("=") for part in text.split(",") if part]
    return name, {key: value for key, _, value in pairs}


def spell(thing: Any) -> str:
    """What `build` makes `thing` of again: its name and the settings that are not the default.

    Args:
        thing: a dataclass that is registered.
    """
    own = [f for f in fields(thing) if getattr(thing, f.name) != f.default]
    text = ",".join(f"{f.name}={getattr(thing, f.name)}" for f in own)
    return name_of(type(thing)) + (f":{text}" if text else "")

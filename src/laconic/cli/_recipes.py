"""Recipes: which methods, with which settings, from a file or from the words of a command."""

from pathlib import Path
from typing import Any

from laconic.errors import UsageError


def chain_of(
    plan: dict[str, Any], method: str | None, settings: dict[str, str], budget: bool
) -> list[dict[str, Any]]:
    """The methods with their settings; none where a budget alone decides."""
    if plan and (method or settings):
        raise UsageError("give either --recipe or --method with --set, not both")
    links = plan.get("methods") or method or plan.get("method") or ""
    chain = [_link(link) for link in (links.split() if isinstance(links, str) else links)]
    if not chain and not budget:
        raise UsageError(
            "give --method NAME, --recipe FILE or --budget B; `laconic methods` lists the names"
        )
    if not chain and settings:
        raise UsageError("--set needs --method: which method is chosen depends on the budget")
    more = settings or plan.get("settings") or {}
    if more and len(chain) != 1:
        raise UsageError(
            f"--set is for one method, found {len(chain)}: put settings behind each, 'gptq:bits=3 eora:rank=16'"
        )
    return [{**link, "settings": {**link["settings"], **more}} for link in chain]


def _link(link: str | dict[str, Any]) -> dict[str, Any]:
    """A method and its settings, of a recipe or spelled."""
    if isinstance(link, dict):
        return {"method": link["method"], "settings": link.get("settings") or {}}
    from laconic.spelling import parse

    name, settings = parse(link)
    return {"method": name, "settings": settings}


def mixed(formats: str, resident: bool) -> list[dict[str, Any]]:
    """The method that chooses among `formats`."""
    from laconic.quantize.mixed import IN_FILES, IN_MEMORY

    named = (IN_MEMORY if resident else IN_FILES) if formats == "auto" else formats
    return [{"method": "mixed", "settings": {"formats": named}}]


def pair(text: str) -> tuple[str, str]:
    """What `--set KEY=VALUE` sets."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set takes KEY=VALUE, found {text!r}")
    return key, value


def read_recipe(path: Path) -> dict[str, Any]:
    """The file's `method` and `settings`, or `methods`, and what else it has.

    Raises:
        UsageError: it cannot be read, or is no recipe.
    """
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(
            f"{path}: cannot be read as a recipe: {' '.join(str(error).split())}"
        ) from error
    known = {"method", "methods", "settings", "also", "budget"}
    if not isinstance(recipe, dict) or not set(recipe) <= known or not _is_chain(recipe):
        raise UsageError(
            f"{path}: a recipe has `method` (and its `settings`), or `methods`, a list of such or of "
            "'gptq:bits=3'; and may have `also` and `budget`"
        )
    return recipe


def _is_chain(recipe: dict[str, Any]) -> bool:
    """Whether a recipe names one method, or several each with its own settings."""
    if not isinstance(recipe.get("settings") or {}, dict):
        return False
    links = recipe.get("methods")
    if links is None:
        return isinstance(recipe.get("method"), str)
    return (
        isinstance(links, list)
        and bool(links)
        and "method" not in recipe
        and all(map(_is_link, links))
    )


def _is_link(link: Any) -> bool:
    if not isinstance(link, dict):
        return isinstance(link, str)
    named = set(link) <= {"method", "settings"} and isinstance(link.get("method"), str)
    return named and isinstance(link.get("settings") or {}, dict)

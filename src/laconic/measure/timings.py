"""The file of a latency table: seconds by shape, one section for each device and version."""

import json
from collections import defaultdict
from pathlib import Path

from laconic.errors import CorruptFile
from laconic.files import save_json

FORMAT = 1


class TimingsFile:
    """Seconds by name, in memory and as JSON.

    Args:
        path: of the file; it need not be there yet. None keeps nothing.
        section: whose times these are; those of others are left as they are.

    Raises:
        CorruptFile: the file holds something else.
    """

    def __init__(self, path: Path | None, section: str) -> None:
        self._path, self._section = path, section
        self._times: dict[str, float] = {}
        self._families: dict[str, dict[tuple[int, ...], float]] = defaultdict(dict)
        self._changed = False
        for name, value in self._read().get(section, {}).items():
            self._keep(name, value)

    def __len__(self) -> int:
        """How many times it holds."""
        return len(self._times)

    def get(self, name: str) -> float | None:
        """The time called `name`."""
        return self._times.get(name)

    def family(self, name: str) -> list[tuple[tuple[int, ...], float]]:
        """Widths and times of all that are called `name @ widths`."""
        return list(self._families[name].items())

    def put(self, name: str, value: float) -> None:
        """Sets the time called `name`."""
        self._keep(name, value)
        self._changed = True

    def save(self) -> None:
        """Writes the file, with what others have written since."""
        if self._path is None or not self._changed:
            return
        sections = self._read()
        sections[self._section] = sections.get(self._section, {}) | self._times
        content = {"laconic_latency": FORMAT, "seconds": sections}
        save_json(self._path, content, sort_keys=True)
        self._changed = False

    def _keep(self, name: str, value: float) -> None:
        self._times[name] = value
        family, at, widths = name.partition(" @ ")
        if at:
            self._families[family][tuple(map(int, widths.split()))] = value

    def _read(self) -> dict[str, dict[str, float]]:
        if self._path is None or not self._path.is_file():
            return {}
        try:
            content = json.loads(self._path.read_text())
            if content["laconic_latency"] != FORMAT:
                raise ValueError(f"format {content['laconic_latency']}, {FORMAT} is expected")
            return {
                str(section): {str(name): float(value) for name, value in times.items()}
                for section, times in content["seconds"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(f"{self._path}: not a latency table: {error!r}; delete it") from error

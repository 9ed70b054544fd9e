"""What runs on this machine, from /proc."""

from __future__ import annotations

from pathlib import Path


def group_of(pgid: int) -> dict[int, str]:
    """The living processes of a group: title by process id. Zombies do not count."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == pgid and state != "Z":
            found[int(folder.name)] = title
    return found

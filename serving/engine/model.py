"""The base model of an engine: what vLLM is told, where its files are, what adapters may call it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs import embedded
from configs.settings import EMBEDDED, EngineSettings


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model. `argument` is vLLM's; `local` says that it is a folder, not a hub id."""

    argument: str
    local: bool
    aliases: tuple[str, ...]

    @classmethod
    def of(cls, settings: EngineSettings) -> BaseModel:
        """The model that the settings of an engine of ours name."""
        if settings.model == EMBEDDED:
            return cls(str(embedded.BASE), True, unique(embedded.BASE_NAME, *settings.base_aliases))
        path = Path(settings.model).expanduser()
        local = path.is_absolute() or path.is_dir() or settings.model.startswith((".", "~"))
        argument = str(path.absolute()) if local else settings.model
        names = (settings.base_name, settings.model, argument, path.name, *settings.base_aliases)
        return cls(argument, local, unique(*names))

    @property
    def folder(self) -> Path | None:
        """Folder of the model's files, if they are on this machine: its own, or its snapshot in the hub's cache."""
        if self.local:
            return Path(self.argument) if (Path(self.argument) / "config.json").is_file() else None
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            config = try_to_load_from_cache(self.argument, "config.json")
        except HFValidationError:
            return None
        return Path(config).parent if isinstance(config, str) else None

    def obstacle(self) -> str | None:
        """Why the model cannot be served, as far as can be seen without vLLM."""
        if not self.local:
            return None
        folder = Path(self.argument)
        if not folder.is_dir():
            return f"the model folder {folder} does not exist"
        if not (folder / "config.json").is_file():
            return f"the model folder {folder} holds no config.json"
        return None


def unique(*names: str) -> tuple[str, ...]:
    """The names, each once, in order."""
    return tuple(dict.fromkeys(names))

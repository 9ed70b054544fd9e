"""Configuration: what can be set, where each value came from, agent presets and engine profiles.

Lifecycle: `load_settings()` once at start, in the composition root; everything else is handed the `Settings` it returns.
"""

from configs.settings import EngineSettings, Settings, SettingsError, load_settings

__all__ = ["EngineSettings", "Settings", "SettingsError", "load_settings"]

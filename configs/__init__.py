"""Configuration: what can be set, where each value came from, agent presets and engine profiles.

Lifecycle: `load_settings()` and `configs.agents.load_presets()` once at start, in the composition root; everything else
is handed the `Settings` and presets they return. Commands that need the settings alone start sooner without presets.
"""

from configs.settings import EngineSettings, Settings, SettingsError, load_settings

__all__ = ["EngineSettings", "Settings", "SettingsError", "load_settings"]

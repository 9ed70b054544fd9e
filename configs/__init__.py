"""Configuration: what can be set, where each value came from, agent presets and engine profiles.

Lifecycle: `load_settings()` and `load_presets()` once at start, in the composition root; everything else is handed the
`Settings` and presets they return.
"""

from configs.agents import AgentPreset, load_presets
from configs.settings import EngineSettings, Settings, SettingsError, load_settings

__all__ = ["AgentPreset", "EngineSettings", "Settings", "SettingsError", "load_presets", "load_settings"]

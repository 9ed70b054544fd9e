"""How a dataset is chosen from an agent's cases. Everything here is part of its name."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from configs.training import TrainingPreset, TrainingSettings
from training.casebank.duplicates import THRESHOLD


class DatasetConfig(BaseModel):
    """Which cases are learned from and which are kept for the gate. Shares are 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reward_threshold: float = Field(0.7, ge=0, le=1, description="least reward of an answer that is learned from")
    reward_quantile: float | None = Field(
        None, gt=0, lt=1, description="learn only from answers at or above this quantile of the agent's rewards"
    )
    validation_share: float = Field(0.1, ge=0, le=0.5, description="share of the training cases that is not learned")
    validation_max: int = Field(500, ge=0, description="most rows of the validation part")
    holdout_max: int = Field(1000, ge=1, description="most rows that the gate asks; the others stay held out")
    similarity: float = Field(THRESHOLD, gt=0, le=1, description="from this on, two prompts are near duplicates")
    general_share: float = Field(0.5, ge=0, lt=1, description="most general questions, as a share of the rows learned")
    label_ratio: float | None = Field(
        None, ge=1, description="most rows of one label, as a multiple of the median label's"
    )
    max_tokens: int | None = Field(None, ge=1, description="longest row, where a tokenizer is given")

    @classmethod
    def of(cls, settings: TrainingSettings, preset: TrainingPreset) -> DatasetConfig:
        """As the settings and an agent's preset say."""
        return cls(
            reward_threshold=settings.reward_threshold,
            reward_quantile=preset.reward_quantile,
            general_share=preset.general_share,
            label_ratio=preset.label_ratio,
        )

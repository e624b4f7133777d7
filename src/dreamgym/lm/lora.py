"""LoRA (arXiv 2106.09685) by peft: small matrices beside frozen weights are all that is trained and saved."""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from peft import LoraConfig


class Lora(BaseModel):
    """Which matrices are added, and how large they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    """In supervised training; policy learning has none, since it compares its own probabilities."""
    modules: str | list[str] = "all-linear"

    def peft(self) -> "LoraConfig":
        """peft's configuration of it."""
        from peft import LoraConfig

        return LoraConfig(r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=self.modules, task_type="CAUSAL_LM")

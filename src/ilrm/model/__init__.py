"""The iLRM network: config, tokens, update layers, decoder."""

from ilrm.model.config import (
    ComputeConfig,
    FeedbackConfig,
    FootprintDecoder,
    ILRMConfig,
    MatchingConfig,
    ReleasedDecoder,
)
from ilrm.model.ilrm import ILRM

__all__ = [
    "ILRM",
    "ComputeConfig",
    "FeedbackConfig",
    "FootprintDecoder",
    "ILRMConfig",
    "MatchingConfig",
    "ReleasedDecoder",
]

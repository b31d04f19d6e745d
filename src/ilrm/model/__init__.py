"""The iLRM network: config, tokens, update layers, decoder."""

from ilrm.model.config import ComputeConfig, FootprintDecoder, ILRMConfig, MatchingConfig, ReleasedDecoder
from ilrm.model.ilrm import ILRM

__all__ = ["ILRM", "ComputeConfig", "FootprintDecoder", "ILRMConfig", "MatchingConfig", "ReleasedDecoder"]

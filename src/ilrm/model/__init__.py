"""The iLRM network: config, tokens, update layers, decoder."""

from ilrm.model.config import FootprintDecoder, ILRMConfig, MatchingConfig, ReleasedDecoder
from ilrm.model.ilrm import ILRM

__all__ = ["ILRM", "FootprintDecoder", "ILRMConfig", "MatchingConfig", "ReleasedDecoder"]

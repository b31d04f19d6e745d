"""Data sets of many scenes on disk: finding, checking, converting and making them."""

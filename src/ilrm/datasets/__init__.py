"""Many scenes on disk: found, checked, converted, made."""

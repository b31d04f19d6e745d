"""The bytes around the attributes of splat files."""

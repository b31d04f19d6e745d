"""Photos and what lies over them, decoded when they are asked for."""

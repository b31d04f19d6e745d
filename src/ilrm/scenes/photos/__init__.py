"""Photos, masks and depth maps, decoded when they are used."""

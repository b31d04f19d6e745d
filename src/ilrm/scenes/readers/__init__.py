"""What other programs write about photos: their files, read into frames."""

"""Container formats of splat files: headers, chunks and streams around the attributes."""

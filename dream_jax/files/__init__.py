"""The disk: pictures, grids, tensor files; how files are written and named; the cache."""

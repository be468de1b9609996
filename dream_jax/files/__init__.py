"""Files as they lie on disk: pictures, results, and how they are written."""

"""Layouts of the Open Container Initiative: content by its digest, in a folder or a tar. Knows no template."""

"""Images of the Open Container Initiative as root trees: layers applied in memory, contents in one file.

```
layout, archive, registry, folder  ->  Root (root.py)  ->  a boot root
```
What is behind the second arrow knows nothing of layers, and what is before it nothing of how a guest boots. Nothing
here is made on the host but one file of contents: owners, devices and attributes take no rights.
"""

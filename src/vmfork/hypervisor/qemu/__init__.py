"""The distribution's own QEMU: its binary, its command line, its monitor, its process."""

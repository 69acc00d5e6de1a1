"""The public nouns: each checks what it is given and calls one mechanism."""

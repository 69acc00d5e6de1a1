"""Interpreters in a virtual machine that keep their state from call to call, and the server that hands them out.

Standard library only, Python 3.9 or newer: it is sent into machines of any image. The server runs no code of anyone's;
each interpreter is a child of it, and may close its streams, print without end, exit, crash or fork.
"""

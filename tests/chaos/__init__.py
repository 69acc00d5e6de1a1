"""Real operations, in each of which somebody is killed, stopped or refused at a named step; and what is left of them.

```
__main__        the command: which runs, and what is told of them
runs            one run: an actor, a death, what was left
aftermath       what must be so after any run
troubles        a host that is full, or short of something
actor           a program: one operation, in a process of its own, with its death
lives           the operations
participants    who takes part: found, killed, stopped
```
"""

"""Child processes that decode pictures: each probe has a time limit, and none can take the worker along.

pool.py hands pictures out, child.py is one child as the worker sees it, process.py its process, program.py what runs
there, confinement.py what that gives up before it sees a picture, and messages.py what the two sides say.

Why not a library: pebble, the one that ends a task past its time, keeps its children on one shared pipe, looks for
news ten times a second, and offers no way to give the children an environment of their own. Here a child is a process
with its own pair of pipes on the event loop.
"""

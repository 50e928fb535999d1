"""A routing table and a request in, a decision and a rewritten request out.

Pure: no I/O, no clock, no global random numbers.
"""

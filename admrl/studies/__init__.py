"""A study: many trainings, their evaluations and reports, from one file. Knows commands, and nothing that computes.

description (the file) -> graph (its jobs) -> driver (what is done when), over an engine (how a job is started) and a
store (what has been done, in the study's folder).
"""

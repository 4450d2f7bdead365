"""Lanes of `task_families.gymnasium_simulator`: environments that are lent, and how they are stepped together.

What is here knows simulators and spaces, and of a family only `lanes.HasEnvironments`.
"""

"""From chosen photos to Gaussians: how many fit a budget, in which groups, and how groups become one.

This file imports nothing, because the command line reads ``budget`` before torch is loaded.
"""

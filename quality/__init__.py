"""Checks of the tests: do they fail when the package is changed a little?"""

"""Mutation testing: whether the tests fail on small changes of the package."""

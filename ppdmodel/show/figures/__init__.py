"""The figures, a module per subject; `ppdmodel.show.plots` has them all."""

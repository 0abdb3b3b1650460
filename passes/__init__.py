"""The compiler: model → graph → labels → groups and sections → costs → gated graph → plan → smaller graph."""

if __name__ != "fxcat.passes":
    raise ImportError("import fxcat.passes, not passes: a second copy would hold a second, empty rule table")

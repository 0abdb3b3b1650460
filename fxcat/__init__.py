"""fxcat: a graph-rewriting compiler pass that makes vision models smaller while they train."""

from fxcat.api import finalize, prepare

__all__ = ["finalize", "prepare"]

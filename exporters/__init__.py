"""What leaves fxcat: verified ONNX files, and saved structures."""

if __name__ != "fxcat.exporters":
    raise ImportError("import fxcat.exporters, not exporters: the folder is a part of the package fxcat")

"""What leaves fxcat as an ONNX file that was verified, and how long such a file takes."""

if __name__ != "fxcat.exporters":
    raise ImportError("import fxcat.exporters, not exporters: the folder is a part of the package fxcat")

"""The command `fxcat`: a thin layer over what the package offers, with settings in files and a folder per run."""

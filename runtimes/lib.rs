//! The language runtimes: detection, shims and build recipes, one folder per language. Pure: it reads no file itself.

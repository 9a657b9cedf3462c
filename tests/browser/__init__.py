"""A package, so that a browser can last as long as the tests of this folder."""

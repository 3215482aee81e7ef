"""The timing suite: ``tox -e bench``. Speed is measured here and nowhere else; no test asserts a time."""

"""The HTTP fronts that the tests run over: the values of the setting `http`."""

ORACLE = "tornado"
"""The front that says what is right; every other answers alike, or more strictly what is no request at all."""

OTHERS: tuple[str, ...] = ("lean",)

FRONTS: tuple[str, ...] = (ORACLE, *OTHERS)

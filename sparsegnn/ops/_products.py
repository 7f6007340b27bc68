"""How many products a kernel forms that multiplies only nonzeros that meet."""


def flop(products: int, nonzeros: int, values: int, inputs: int) -> int:
    """Two for each pair of nonzeros that meet: ``products``, or as many as do where both are spread evenly."""
    return 2 * products if products >= 0 else 2 * nonzeros * values // max(1, inputs)

"""Weights of linear layers in fewer bits; whatever else a model has stays as it is.

| format | a weight is kept as | a product |
| --- | --- | --- |
| ``float32`` | fp32 | fp32 |
| ``float16``, ``bfloat16`` | its nearest 16-bit number | fp32, weights widened |
| ``int8`` | unit of its output x a byte | whole numbers, exact: see ``Int8Linear`` |

States, recurrences, norms and biases do not change: their numbers act once a token for ever, and
weigh next to nothing. The compiled CPU code (``kssm.forecast.native``) does the same arithmetic,
and reads the weights in the format they are kept in.
"""

from kssm.quantization.formats import format_of, quantize
from kssm.quantization.linear import HalfLinear, Int8Linear, QuantizedLinear
from kssm.weight_format import FORMATS, WeightFormat, parse_format

__all__ = [
    "FORMATS",
    "HalfLinear",
    "Int8Linear",
    "QuantizedLinear",
    "WeightFormat",
    "format_of",
    "parse_format",
    "quantize",
]

"""The zoo: one tiny random model per architecture that is served, with the features for which its model is known."""

from tests.zoo.dense import DENSE
from tests.zoo.encoders import ENCODERS
from tests.zoo.experts import EXPERTS
from tests.zoo.padded import PADDED
from tests.zoo.positions import LONG_POSITIONS
from tests.zoo.states import STATE

FLAT = (*DENSE, *EXPERTS, *LONG_POSITIONS)
ZOO = (*FLAT, *STATE, *PADDED, *ENCODERS)

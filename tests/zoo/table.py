"""The zoo: one tiny random model per architecture that is served. Each exercises what its model is known for."""

from tests.zoo.dense import DENSE
from tests.zoo.encoders import ENCODERS
from tests.zoo.experts import EXPERTS
from tests.zoo.padded import PADDED
from tests.zoo.positions import LONG_POSITIONS
from tests.zoo.states import STATE

FLAT = (*DENSE, *EXPERTS, *LONG_POSITIONS)
ZOO = (*FLAT, *STATE, *PADDED, *ENCODERS)
